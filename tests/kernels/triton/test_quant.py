import pytest
import torch

from kernels.quant import dequantize, quantize, reference

SHAPES = [(33, 200), (5, 65), (70, 256), (1, 1)]


def weights(shape, dtype, kind):
    rows, cols = shape
    wide = torch.randn(rows, cols + 7, generator=torch.Generator().manual_seed(0))  # a row stride beyond the width
    W = wide[:, :cols]
    if kind == "hostile":
        W.abs_()
        W[0] = 0
        W[-1, cols // 2] = float("nan")
        W[rows // 2, 0] = -float("inf")
        W[:, : cols // 3] *= 1e-33  # a range below the smallest
    return wide.to(dtype)[:, :cols]


@pytest.mark.parametrize("key", [None, 5, 2**32 - 5], ids=str)
@pytest.mark.parametrize("kind", ["normal", "hostile"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition_code_for_code(shape, bits, dtype, kind, key, device):
    group = 64 if shape[1] < 256 else 256
    W = weights(shape, dtype, kind)
    found = quantize(W.to(device), bits, group, key)
    expected = reference.quantize(W, bits, group, key)
    assert torch.equal(found.codes.cpu(), expected.codes)
    assert torch.equal(found.zeros.cpu(), expected.zeros)
    assert torch.equal(found.scales.cpu().nan_to_num(-1), expected.scales.nan_to_num(-1))
    for out_dtype in (torch.float32, torch.bfloat16):
        wide = torch.full((shape[0], shape[1] + 9), 3.0, dtype=out_dtype, device=device)
        out = dequantize(found, out_dtype, out=wide[:, : shape[1]])
        assert torch.equal(out.cpu().nan_to_num(7), reference.dequantize(expected, out_dtype).nan_to_num(7))
        assert (wide[:, shape[1] :] == 3).all()
