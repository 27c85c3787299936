"""Products of codes in plain PyTorch: integers by the library's INT8 product where that is exact, all else as fp32."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from kernels.code_product.reference import scaled
from kernels.quant.format import Quantized
from kernels.row_codes.format import RowCodes

EXACT_DEPTH = 1024
"""So many products of int8 sum up exactly in fp32, in any order: below 2^24."""

SIGN = 128
"""What turns an unsigned code into a signed one: code - 128, or its highest bit the other way."""


def product(a: RowCodes, b: RowCodes, dtype: torch.dtype) -> Tensor:
    """a b^T (rows of a, rows of b)."""
    return scaled(_sums(a.codes, b.codes, transposed=True), a.scales, b.scales).to(dtype)


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
        sums = _integer_sums(codes, signed[:, o_col].t())
        sums -= codes.sum(1, dtype=torch.int32)[:, None] * zeros
        total += sums.float() * W.scales[:, i_group]
    return scaled(total, a.scales, None).to(dtype)


def _sums(left: Tensor, right: Tensor, transposed: bool = False) -> Tensor:
    """left right (rows, cols) of codes, or left right^T: int32, of FP8 fp32."""
    integers = left.dtype == torch.int8
    if not integers:
        left, right = _values(left), _values(right)
    right = right.t() if transposed else right
    return _integer_sums(left, right) if integers else left @ right


def _values(codes: Tensor) -> Tensor:
    """FP8 codes in fp32. A look-up takes a CPU a seventh of the time that its cast takes, which goes one by one."""
    if codes.is_cuda:
        return codes.float()
    every = torch.arange(256, dtype=torch.uint8, device=codes.device).view(codes.dtype).float()
    return every.index_select(0, codes.view(torch.uint8).reshape(-1).int()).view(codes.shape)


def _integer_sums(left: Tensor, right: Tensor) -> Tensor:
    """left right (rows, cols) of int8, int32."""
    if not left.is_cuda and multiplies_integers():
        return torch._int_mm(_row_after_row(left), _row_after_row(right))
    sums = torch.zeros(left.shape[0], right.shape[1], dtype=torch.int32, device=left.device)
    for part in range(0, left.shape[1], EXACT_DEPTH):
        o_depth = slice(part, part + EXACT_DEPTH)
        sums += (left[:, o_depth].float() @ right[o_depth].float()).int()
    return sums


def _row_after_row(codes: Tensor) -> Tensor:
    """`codes`, a single row with its length as stride: at a stride of 1 `torch._int_mm` computes nothing."""
    return codes.reshape(-1).view(codes.shape) if len(codes) == 1 else codes


@cache
def multiplies_integers() -> bool:
    """Whether `torch._int_mm` is exact on this processor.

    Without VNNI instructions (Zen 3, AVX2 alone) oneDNN adds pairs of products in 16 bits, which saturate: the sums are
    far off, and nothing says so.
    """
    with ThreadPoolExecutor(1) as pool:  # where modes of this thread, a plan's tensors without data, do not reach
        return pool.submit(_int_mm_is_exact).result()


def _int_mm_is_exact() -> bool:
    codes = torch.full((16, 16), 127, dtype=torch.int8)
    return bool((torch._int_mm(codes, codes) == 16 * 127**2).all())
