"""Products of 8-bit codes, as tensor cores multiply them, and their scales.

Three make up a linear y = x W^T whose factors are quantised:
- forward, `product`: y = x_codes W_codes^T, by the scales of both;
- backward, `product_across`: dx = g W. W has a scale per row, and rows are what is summed over here. So they are folded
  into the columns of g before it is quantised, and the codes of the forward pass serve once more.
- backward, `product` again: dW = g^T x, of both transposed, where that is in eight bits too.
`group_product` is the forward pass of weights that are stored in 8 bits, by groups of columns.
"""

import torch
from torch import Tensor

from kernels.backend import on_its_device, uses_triton
from kernels.code_product import in_torch
from kernels.quant.format import Quantized
from kernels.row_codes import RowCodes, transposed

LONGEST_SUM = (2**31 - 1) // 127**2
"""Products of int8 that a 32-bit integer can sum up for sure."""

__all__ = ["LONGEST_SUM", "group_product", "product", "product_across"]


@on_its_device
def product(a: RowCodes, b: RowCodes, dtype: torch.dtype) -> Tensor:
    """a b^T (rows of a, rows of b) in `dtype`: the sum of codes times a's scale of the row, times b's of the column.

    Sums of int8 are exact; those of fp8 are in fp32, whose order depends on the device. The scales are applied in fp32,
    and the result is rounded once. ValueError when the factors do not belong together.
    """
    _check(a, b)
    if a.cols != b.cols:
        raise ValueError(f"a has {a.cols} columns and b has {b.cols}")
    if not uses_triton(a.codes):
        return in_torch.product(a, b, dtype)
    return _launch(a, b, dtype)


@on_its_device
def product_across(a: RowCodes, b: RowCodes, dtype: torch.dtype) -> Tensor:
    """a b (rows of a, columns of b) in `dtype`, without b's scales: whoever quantised a has folded them in.

    ValueError when the factors do not belong together.
    """
    _check(a, b)
    if a.cols != b.shape[0]:
        raise ValueError(f"a has {a.cols} columns and b has {b.shape[0]} rows")
    if not uses_triton(a.codes):
        return in_torch.product_across(a, b, dtype)
    return _launch(a, transposed(b), dtype)


@on_its_device
def group_product(a: RowCodes, W: Quantized, dtype: torch.dtype) -> Tensor:
    """a W^T (rows of a, rows of W) in `dtype`, W's codes multiplied as they are stored.

    Sums within a group are exact, and summed in fp32 by W's scales, one group after the other. ValueError when the
    factors do not belong together, or W has not 8 bits.
    """
    a.check("a")
    W.check("W", W.shape)
    if a.format != "int8" or W.bits != 8 or a.cols != W.shape[1]:
        raise ValueError(
            f"a of {a.shape} in {a.format} and W of {W.shape} in {W.bits} bits: int8 and 8 bits of as many columns "
            "multiply"
        )
    if not uses_triton(a.codes):
        return in_torch.group_product(a, W, dtype)
    y = torch.empty(a.shape[0], W.shape[0], dtype=dtype, device=a.device)
    if y.numel():
        from kernels.code_product.in_triton import launch_group_product

        launch_group_product(a, W, y)
    return y


def _check(a: RowCodes, b: RowCodes) -> None:
    a.check("a")
    b.check("b")
    if a.format != b.format:
        raise ValueError(f"a is in {a.format} and b in {b.format}; one format multiplies")
    if a.scales is None:
        raise ValueError("a has no scales")
    if a.format == "int8" and a.cols > LONGEST_SUM:
        raise ValueError(f"a has {a.cols} columns; sums of more than {LONGEST_SUM} may leave 32 bits")


@on_its_device
def _launch(a: RowCodes, b: RowCodes, dtype: torch.dtype) -> Tensor:
    y = torch.empty(a.shape[0], b.shape[0], dtype=dtype, device=a.device)
    if y.numel():
        from kernels.code_product.in_triton import launch_product

        launch_product(a, b, y)
    return y
