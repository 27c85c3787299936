"""Products of codes in plain PyTorch: integers by the library's INT8 product, FP8 as fp32."""

import torch
from torch import Tensor

from kernels.code_product.reference import scaled
from kernels.quant.format import Quantized
from kernels.row_codes.format import RowCodes

SIGN = 128
"""What turns an unsigned code into a signed one: code - 128, or its highest bit the other way."""


def product(a: RowCodes, b: RowCodes, dtype: torch.dtype) -> Tensor:
    """a b^T (rows of a, rows of b)."""
    return scaled(_sums(a.codes, b.codes.t()), a.scales, b.scales).to(dtype)


def product_across(a: RowCodes, b: RowCodes, dtype: torch.dtype) -> Tensor:
    """a b (rows of a, columns of b) without b's scales."""
    return scaled(_sums(a.codes[:, : a.cols], b.codes)[:, : b.cols], a.scales, None).to(dtype)


def group_product(a: RowCodes, W: Quantized, dtype: torch.dtype) -> Tensor:
    """a W^T (rows of a, rows of W), a group of columns after the other."""
    total = torch.zeros(a.shape[0], W.shape[0], device=a.device)
    signed = (W.codes ^ SIGN).view(torch.int8)
    for i_group in range(W.scales.shape[1]):
        o_col = slice(i_group * W.group, min((i_group + 1) * W.group, a.codes.shape[1]))
        codes = a.codes[:, o_col]
        zeros = W.zeros[:, i_group].int() - SIGN
        sums = torch._int_mm(codes, signed[:, o_col].t())
        sums -= codes.sum(1, dtype=torch.int32)[:, None] * zeros
        total += sums.float() * W.scales[:, i_group]
    return scaled(total, a.scales, None).to(dtype)


def _sums(left: Tensor, right: Tensor) -> Tensor:
    """left right (rows, cols) of codes: int32, of FP8 fp32."""
    if left.dtype == torch.int8:
        return torch._int_mm(left, right)
    return left.float() @ right.float()
