import pytest
import torch

from kernels.code_product import group_product, product, product_across
from kernels.code_product.reference import group_product as reference_group
from kernels.code_product.reference import product as reference
from kernels.quant import quantize
from kernels.quant.reference import quantize as reference_quantize
from kernels.row_codes import quantize_rows
from kernels.row_codes.format import RowCodes
from kernels.row_codes.reference import transposed

# rows, columns, what is summed over
SHAPES = [(1, 1, 1), (16, 16, 32), (70, 130, 129), (5, 33, 300), (130, 20, 256), (200, 260, 40)]
ULP = {torch.float32: 2**-22, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def draw(rows, cols, seed):
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    x[-1] = 0
    x[:, 0] *= 50
    return x


def cpu(q):
    return RowCodes(q.codes.cpu(), None if q.scales is None else q.scales.cpu(), q.cols)


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_equals_the_definition(shape, dtype, format, device):
    rows, cols, depth = shape
    a = quantize_rows(draw(rows, depth, 0).to(device), format)
    b = quantize_rows(draw(cols, depth, 1).to(device), format)
    y, exact = product(a, b, dtype).cpu(), reference(cpu(a), cpu(b), dtype)
    assert y.dtype == dtype
    assert y.shape == (rows, cols)
    if format == "int8":
        assert torch.equal(y, exact)
    else:
        bound = ULP[dtype] * exact.abs() + 1e-5 * exact.abs().max()
        assert ((y - exact).abs() <= bound).all()


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_across_equals_the_definition(shape, format, device):
    rows, cols, depth = shape
    a = quantize_rows(draw(rows, depth, 0).to(device), format)
    b = quantize_rows(draw(depth, cols, 1).to(device), format)
    y, exact = product_across(a, b, torch.float32).cpu(), reference(cpu(a), transposed(cpu(b)), torch.float32)
    assert y.shape == (rows, cols)
    assert (y - exact).abs().max() <= (0 if format == "int8" else 1e-5 * exact.abs().max())


@pytest.mark.parametrize("group", [64, 128, 256])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_group_product_equals_the_definition(shape, group, device):
    rows, cols, depth = shape
    a = quantize_rows(draw(rows, depth, 0).to(device), "int8")
    weight = draw(cols, depth, 1) + 0.3
    y = group_product(a, quantize(weight.to(device), 8, group), torch.float32).cpu()
    exact = reference_group(cpu(a), reference_quantize(weight, 8, group), torch.float32)
    assert torch.equal(y, exact)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_every_tile_gives_the_same_product(format, device):
    from kernels.code_product.in_triton import LARGE_TILES, SMALL_TILES, launch_product, tiles

    a, b = (quantize_rows(draw(rows, 272, rows).to(device), format) for rows in (150, 270))
    known = tiles(device, a.codes.dtype).values() if device.type == "cuda" else {*SMALL_TILES, *LARGE_TILES}
    products = []
    for tile in known:
        y = torch.empty(150, 270, device=device)
        launch_product(a, b, y, tile)
        products.append(y)
    for y in products[1:]:
        assert torch.equal(y, products[0])


def test_what_is_not_finite_stays_in_its_row(device):
    x = draw(5, 40, 0)
    x[2, 7] = float("inf")
    y = product(quantize_rows(x.to(device), "int8"), quantize_rows(draw(6, 40, 1).to(device), "int8"), torch.float32)
    assert y.isnan().all(1).tolist() == [False, False, True, False, False]
    assert y[[0, 1, 3, 4]].isfinite().all()
