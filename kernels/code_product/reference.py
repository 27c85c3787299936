"""The definitions of the products of codes, in fp64 where integers do not do."""

import torch
from torch import Tensor

from kernels.quant.format import Quantized
from kernels.row_codes.format import RowCodes


def product(a: RowCodes, b: RowCodes, dtype: torch.dtype) -> Tensor:
    """a b^T (rows of a, rows of b): see `kernels.code_product.product`."""
    sums = (a.codes.double() @ b.codes.double().t()).float()  # of integers exact, below 2^53
    return scaled(sums, a.scales, b.scales).to(dtype)


def scaled(sums: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
    """`sums` in fp32, times the scales of its rows, then of its columns where there are some."""
    assert rows is not None
    sums = sums * rows[:, None]
    return sums if cols is None else sums * cols


def group_product(a: RowCodes, W: Quantized, dtype: torch.dtype) -> Tensor:
    """a W^T (rows of a, rows of W): see `kernels.code_product.group_product`."""
    codes, total = a.codes[:, : a.cols].double(), torch.zeros(a.shape[0], W.shape[0], device=a.device)
    for i_group in range(W.scales.shape[1]):
        o_col = slice(i_group * W.group, min((i_group + 1) * W.group, a.cols))
        levels = W.codes[:, o_col].double() - W.zeros[:, i_group, None].double()
        total += (codes[:, o_col] @ levels.t()).float() * W.scales[:, i_group]
    return scaled(total, a.scales, None).to(dtype)
