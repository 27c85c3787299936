import math

import pytest
import torch

from kernels.quant import Quantized, dequantize, quantize


def weights(rows=5, cols=200, seed=0):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def steps(q):
    """The scale of each element's group."""
    return q.scales.repeat_interleave(q.group, 1)[:, : q.shape[1]]


@pytest.mark.parametrize("shift", [0, 3, -3], ids=lambda shift: f"mean {shift}")
@pytest.mark.parametrize("cols", [256, 200, 65, 1])
@pytest.mark.parametrize("group", [64, 256])
@pytest.mark.parametrize("bits", [8, 4])
def test_no_element_moves_by_more_than_half_a_step(bits, group, cols, shift):
    W = weights(cols=cols) + shift
    q = quantize(W, bits, group)
    assert q.codes.shape == (5, -(-cols * bits // 128) * 16)  # bytes, rounded up to 16
    assert q.scales.shape == q.zeros.shape == (5, -(-cols // group))
    assert ((dequantize(q, torch.float32) - W).abs() <= 0.5001 * steps(q)).all()


def test_codes_scales_and_zeros_of_a_group_done_by_hand():
    W = torch.zeros(1, 64)
    W[0, :6] = torch.tensor([-5.0, 10.0, 1.0, 1.4, 1.6, -0.6])
    q = quantize(W, 4, 64)
    assert q.scales.item() == 1
    assert q.zeros.item() == 5
    assert q.codes[0, :4].tolist() == [0 | 15 << 4, 6 | 6 << 4, 7 | 4 << 4, 5 | 5 << 4]


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_are_exact_and_a_group_of_zeros_too(bits):
    W = weights(cols=256)
    W[:, ::3] = 0
    W[1] = 0
    found = dequantize(quantize(W, bits, 64, key=7), torch.float32)
    assert not found[W == 0].any()
    assert found.isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_matrix_quantises_to_itself_even_stochastically(bits):
    once = dequantize(quantize(weights(cols=256), bits, 64), torch.float32)
    again = dequantize(quantize(once, bits, 64, key=3), torch.float32)
    torch.testing.assert_close(again, once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_stochastic_rounding_is_right_on_average_and_takes_a_neighbour(bits):
    W = weights(cols=256).clamp(-2.5, 2.5)
    W[:, ::64], W[:, 1::64] = -3, 3  # the ends of every range, which cannot go beyond
    q = quantize(W, bits, 64)
    draws = torch.stack([dequantize(quantize(W, bits, 64, key=key), torch.float32) for key in range(200)])
    inner = torch.ones_like(W, dtype=torch.bool)
    inner[:, ::64] = inner[:, 1::64] = False
    error = ((draws.mean(0) - W) / steps(q))[inner]
    assert ((draws - W).abs() < 1.001 * steps(q)).all()
    assert error.abs().max() < 4.5 * 0.5 / 200**0.5  # the largest of 1240
    assert error.abs().mean() > 0.005  # it is random
    assert abs(error.mean()) < 4 * 0.5 / (200 * error.numel()) ** 0.5


def test_the_key_decides():
    W = weights()
    first, same, other = (quantize(W, 8, 64, key=key).codes for key in (2**32 - 1, 2**32 - 1, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_group_with_nan_or_infinity_becomes_nan_and_harms_no_other(bits, bad):
    W = weights(cols=200)
    expected = dequantize(quantize(W, bits, 64), torch.float32)
    W[2, 70] = bad
    found = dequantize(quantize(W, bits, 64), torch.float32)
    assert found[2, 64:128].isnan().all()
    found[2, 64:128] = expected[2, 64:128]
    assert torch.equal(found, expected)


def test_writes_to_out_with_a_row_stride():
    q = quantize(weights(), 8, 64)
    wide = torch.zeros(5, 220, dtype=torch.bfloat16)
    dequantize(q, torch.bfloat16, out=wide[:, 10:210])
    assert torch.equal(wide[:, 10:210], dequantize(q, torch.float32).bfloat16())
    assert not wide[:, :10].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(weights(), 3), "bits is 3"),
        (lambda: quantize(weights(), 8, 100), "group is 100"),
        (lambda: quantize(weights(), 8, key=2**32), "key is 4294967296"),
        (lambda: quantize(weights().t(), 8), "rows must be contiguous"),
        (lambda: quantize(weights().double(), 8), "W is torch.float64"),
        (lambda: quantize(weights()[0], 8), "must be a matrix"),
        (lambda: dequantize(quantize(weights(), 8), torch.float32, out=torch.empty(2, 2)), r"out has shape \(2, 2\)"),
        (
            lambda: dequantize(Quantized(*[torch.zeros(1, 16)] * 3, (1, 16), 8, 64), torch.float32),
            "codes is torch.float",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)], ids=str)
def test_an_empty_matrix(shape, bits):
    q = quantize(torch.zeros(shape), bits, 64, key=1)
    assert dequantize(q, torch.bfloat16).shape == shape


def test_many_rows_stay_within_the_sides_of_a_grid(monkeypatch):
    """CUDA: 2^31 - 1 programs along the first side, 65535 along the others."""
    in_triton = pytest.importorskip("kernels.quant.in_triton", exc_type=ImportError)  # needs triton
    grids = []

    class Kernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *arguments, **options: None

    monkeypatch.setattr(in_triton, "quantize_kernel", Kernel())
    monkeypatch.setattr(in_triton, "dequantize_kernel", Kernel())
    meta = torch.device("meta")
    q, W = Quantized.empty((2**23, 65), 8, 64, meta), torch.empty(2**23, 65, device=meta)
    in_triton.launch_quantize(W, q, None)
    in_triton.launch_dequantize(q, W)
    for first, *others in grids:
        assert first * math.prod(others) == 2 * 2**23 * 64 // 2048
        assert first < 2**31
        assert all(side <= 65535 for side in others)
