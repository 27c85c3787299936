import pytest
import torch

from kernels.row_codes import quantize_rows, transposed
from kernels.row_codes.format import RowCodes
from kernels.row_codes.reference import quantize_rows as reference
from kernels.row_codes.reference import transposed as reference_transposed

SHAPES = [(1, 1), (3, 16), (5, 33), (70, 200), (2, 2300), (9, 1030)]


def rows(shape, dtype, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[0, 0] *= 1000  # an outlier
    x[shape[0] // 2] = 0
    return x.to(dtype)


def assert_same(q, expected):
    assert q.codes.dtype == expected.codes.dtype
    assert q.cols == expected.cols
    assert torch.equal(q.codes.view(torch.uint8), expected.codes.view(torch.uint8))
    if expected.scales is None:
        assert q.scales is None
    else:
        assert torch.equal(q.scales.view(torch.int32), expected.scales.view(torch.int32))


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition_bit_for_bit(shape, dtype, format, device):
    x = rows(shape, dtype)
    fold = torch.rand(shape[1], generator=torch.Generator().manual_seed(1)) + 0.5
    for folded in (None, fold):
        q = quantize_rows(x.to(device), format, None if folded is None else fold.to(device))
        assert_same(RowCodes(q.codes.cpu(), q.scales.cpu(), q.cols), reference(x, format, folded))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stochastic_codes_equal_the_definition_bit_for_bit(shape, device):
    x = rows(shape, torch.float32)
    q = quantize_rows(x.to(device), "int8", stochastic=True)
    assert_same(RowCodes(q.codes.cpu(), q.scales.cpu(), q.cols), reference(x, "int8", stochastic=True))


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_rows_that_are_not_finite_are_marked_and_others_unharmed(format, device):
    x = rows((6, 40), torch.float32)
    x[1, 3], x[2, 39], x[4, 0] = float("nan"), float("inf"), -float("inf")
    q = quantize_rows(x.to(device), format)
    assert q.scales.isnan().tolist() == [False, True, True, False, True, False]
    assert not q.codes[[1, 2, 4]].float().any()
    assert_same(RowCodes(q.codes.cpu(), q.scales.cpu(), q.cols), reference(x, format))


@pytest.mark.parametrize("format", ["fp8"])
def test_every_fp8_number_and_what_lies_between(format, device):
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = numbers[numbers.isfinite()].unique()
    between = (grid[1:] + grid[:-1]) / 2
    x = torch.cat([grid, between, between.nextafter(grid[1:]), between.nextafter(grid[:-1])])[None]
    q = quantize_rows(x.to(device), format)  # the largest is 448, so the scale is 1
    assert q.scales.tolist() == [1.0]
    assert torch.equal(q.codes[:, : x.shape[1]].cpu().float(), x.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (70, 130), (130, 17)], ids=str)
def test_transposed(shape, format, device):
    q = quantize_rows(rows(shape, torch.float32).to(device), format)
    back = transposed(q)
    assert_same(
        RowCodes(back.codes.cpu(), None, back.cols), reference_transposed(RowCodes(q.codes.cpu(), None, q.cols))
    )
