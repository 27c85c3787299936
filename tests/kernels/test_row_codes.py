import pytest
import torch

from kernels.row_codes import quantize_rows, transposed
from kernels.row_codes.format import LARGEST, RowCodes, code_width
from kernels.row_codes.reference import decoded
from kernels.row_codes.reference import quantize_rows as reference

SHAPES = [(1, 1), (3, 16), (5, 33), (70, 200), (0, 7)]
FORMATS = ["int8", "fp8"]


def rows(shape, dtype=torch.float32, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if shape[0]:
        x[0, 0] *= 1000  # an outlier
        x[shape[0] // 2] = 0
    return x.to(dtype)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fewer_passes_give_the_same_bits(shape, dtype, format, stochastic):
    if stochastic and format == "fp8":
        pytest.skip("fp8 rounds to nearest")
    x = rows(shape, dtype)
    for fold in (None, torch.rand(shape[1], generator=torch.Generator().manual_seed(1)) + 0.5):
        found, expected = quantize_rows(x, format, fold, stochastic), reference(x, format, fold, stochastic)
        assert torch.equal(found.codes.view(torch.uint8), expected.codes.view(torch.uint8))
        assert torch.equal(found.scales, expected.scales)
        assert found.codes.shape == (shape[0], code_width(shape[1]))
        assert not found.codes.float()[:, shape[1] :].any()


@pytest.mark.parametrize("format", FORMATS)
def test_no_element_moves_further_than_its_format_says(format):
    x = rows((200, 300)).double()
    q = quantize_rows(x.float(), format)
    moved, scales = (decoded(q) - x).abs(), q.scales.double()[:, None]
    if format == "int8":
        assert (moved <= scales * (0.5 + 1e-4)).all()
    else:
        assert (moved <= torch.maximum(x.abs() / 16, scales * 2**-10) * (1 + 1e-4)).all()
    assert q.codes.float().abs().amax() == LARGEST[format]


def test_what_would_round_to_128_does_not_wrap():
    x = torch.tensor([[127.5, -127.5, 127.49, 1.0]]).bfloat16()  # bf16 has no 127.5: it is 127.5 or 128
    q = quantize_rows(x, "int8")
    assert q.codes[0, :4].tolist() == [127, -127, 127, 1]


def test_stochastic_rounding_is_right_on_average_and_stays_between_the_neighbours():
    x = torch.full((4000, 3), 0.3)
    x[:, 0] = torch.linspace(100, 127, 4000)  # another scale for each row, so other bits
    x[:, 2] = -0.3
    q = quantize_rows(x, "int8", stochastic=True)
    exact = x / q.scales[:, None]
    assert ((q.codes[:, :3] == exact.floor()) | (q.codes[:, :3] == exact.floor() + 1)).all()
    error = (q.codes[:, :3].double() - exact)[:, 1:]
    assert (error.mean(0).abs() < 4 * error.std(0) / 4000**0.5).all()
    assert torch.equal(quantize_rows(x, "int8", stochastic=True).codes, q.codes)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_that_are_not_finite_are_marked_and_others_unharmed(format):
    x = rows((6, 40))
    x[1, 3], x[2, 39], x[4, 0] = float("nan"), float("inf"), -float("inf")
    q, clean = quantize_rows(x, format), quantize_rows(x[[0, 3, 5]], format)
    assert q.scales.isnan().tolist() == [False, True, True, False, True, False]
    assert not q.codes[[1, 2, 4]].float().any()
    assert torch.equal(q.codes[[0, 3, 5]].float(), clean.codes.float())


@pytest.mark.parametrize("format", FORMATS)
def test_transposed(format):
    q = quantize_rows(rows((7, 20)), format)
    back = transposed(q)
    assert back.shape == (20, 7)
    assert back.scales is None
    assert torch.equal(back.codes.float()[:, :7], q.codes.float()[:, :20].t())
    assert not back.codes.float()[:, 7:].any()


def test_arguments_that_do_not_fit_are_refused():
    x = rows((4, 6))
    for wrong, match in ((x[0], "a matrix"), (x[:, :0], "a matrix"), (x.double(), "float64"), (x.t(), "contiguous")):
        with pytest.raises(ValueError, match=match):
            quantize_rows(wrong, "int8")
    with pytest.raises(ValueError, match="fold is"):
        quantize_rows(x, "int8", torch.ones(4))
    with pytest.raises(ValueError, match="for int8"):
        quantize_rows(x, "fp8", stochastic=True)
    with pytest.raises(ValueError, match="scales must be fp32"):
        transposed(RowCodes(quantize_rows(x, "int8").codes, torch.ones(3), 6))
