import os
import platform
import subprocess
import sys

import pytest
import torch

from kernels.code_product import group_product, in_torch, product, product_across
from kernels.code_product.reference import group_product as reference_group
from kernels.code_product.reference import product as reference
from kernels.quant import dequantize, quantize
from kernels.row_codes import quantize_rows, transposed
from kernels.row_codes.reference import decoded

# rows, columns, what is summed over
SHAPES = [(1, 1, 1), (16, 16, 32), (70, 130, 129), (5, 33, 300), (0, 4, 8), (200, 260, 40)]
FORMATS = ["int8", "fp8"]


def draw(rows, cols, seed):
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    if rows:
        x[-1] = 0
        x[:, 0] *= 50
    return x


def assert_near(found, exact, format):
    assert found.shape == exact.shape
    if format == "int8":
        assert torch.equal(found, exact)
    elif exact.numel():
        assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_decoded_matrices(shape, format):
    rows, cols, depth = shape
    a, b = quantize_rows(draw(rows, depth, 0), format), quantize_rows(draw(cols, depth, 1), format)
    across = quantize_rows(draw(depth, cols, 2), format)
    assert_near(product(a, b, torch.float32), reference(a, b, torch.float32), format)
    assert_near(product_across(a, across, torch.float32), reference(a, transposed(across), torch.float32), format)
    exact = decoded(a).double() @ decoded(b).double().t()
    assert (product(a, b, torch.float32) - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("exact", [True, False])
def test_integers_are_exact_whatever_the_processor_does(exact, monkeypatch):
    monkeypatch.setattr(in_torch, "multiplies_integers", lambda: exact and in_torch._int_mm_is_exact())
    a, b = (torch.full((rows, 2999), 127, dtype=torch.int8) for rows in (20, 33))  # an odd sum beyond 2^24
    b[::2] = -127
    sums = in_torch._integer_sums(a, b.t())
    assert sums.dtype == torch.int32
    assert torch.equal(sums.double(), a.double() @ b.double().t())


@pytest.mark.parametrize("shape", [(1, 8, 64), (4, 8, 1), (1, 1, 16), (1, 1, 1)], ids=str)
def test_a_single_row_that_was_a_column(shape):
    """Its stride is 1, and PyTorch calls it contiguous."""
    rows, cols, depth = shape
    left, right = (torch.arange(-9, size - 9, dtype=torch.int8) for size in (rows * depth, depth * cols))
    left, right = left.view(depth, rows).t().contiguous(), right.view(cols, depth).t().contiguous()
    assert min(left.shape[0], right.shape[0]) == 1
    assert torch.equal(in_torch._integer_sums(left, right).long(), left.long() @ right.long())


def test_without_vnni_instructions_too():
    """oneDNN's own product of int8 saturates there; the variable makes any x86 processor such a one."""
    code = (
        "import torch; from kernels.code_product import in_torch, product; from kernels.row_codes import quantize_rows;"
        "a = quantize_rows(torch.ones(20, 70), 'int8'); y = product(a, a, torch.float32);"
        "assert (y - 70).abs().max() < 1e-4, y; print(in_torch.multiplies_integers())"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    if platform.machine() == "x86_64":
        assert done.stdout == "False\n"


def test_a_result_is_rounded_once():
    a, b = quantize_rows(draw(30, 50, 0), "int8"), quantize_rows(draw(20, 50, 1), "int8")
    assert torch.equal(product(a, b, torch.bfloat16), product(a, b, torch.float32).bfloat16())


@pytest.mark.parametrize("group", [64, 128, 256])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_in_groups_are_multiplied_as_they_lie(shape, group):
    rows, cols, depth = shape
    a, W = quantize_rows(draw(rows, depth, 0), "int8"), quantize(draw(cols, depth, 1) + 0.3, 8, group)
    y = group_product(a, W, torch.float32)
    assert torch.equal(y, reference_group(a, W, torch.float32))
    exact = decoded(a).double() @ dequantize(W, torch.float32).double().t()
    assert (y - exact).norm() <= 1e-6 * exact.norm()


def test_factors_that_do_not_belong_together_are_refused():
    a, b, fp8 = (quantize_rows(draw(4, 6, 0), format) for format in ("int8", "int8", "fp8"))
    with pytest.raises(ValueError, match="one format"):
        product(a, fp8, torch.float32)
    with pytest.raises(ValueError, match="a has 6 columns and b has 4"):
        product(a, transposed(b), torch.float32)
    with pytest.raises(ValueError, match="a has 6 columns and b has 4 rows"):
        product_across(a, b, torch.float32)
    with pytest.raises(ValueError, match="a has no scales"):
        product(transposed(a), transposed(b), torch.float32)
    for wrong in (quantize(draw(4, 6, 0), 4, 64), quantize(draw(4, 7, 0), 8, 64)):
        with pytest.raises(ValueError, match="int8 and 8 bits of as many columns"):
            group_product(a, wrong, torch.float32)
    with pytest.raises(ValueError, match="int8 and 8 bits"):
        group_product(fp8, quantize(draw(4, 6, 0), 8, 64), torch.float32)
