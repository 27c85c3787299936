"""Triton kernels of row-wise quantisation. A row belongs to one program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.quant.format import ALIGNMENT, TINY
from kernels.row_codes.format import LARGEST, RowCodes
from kernels.triton_helpers import convert, random_fractions, round_half_even

TILE = 2048
"""Elements that a program has at a time."""

SMALLEST_SPAN = tl.constexpr(TINY)
ROW_ALIGNMENT = tl.constexpr(ALIGNMENT)

SIDE = 64
"""Side of the square that a program transposes."""


@triton.jit
def load_rows(x, fold, o_row, m_row, o_col, n_cols, stride_x, FOLDED: tl.constexpr):
    """x (fp32) [ROWS, COLS] at `o_row` and `o_col`, its columns times `fold` where FOLDED; 0 beyond the matrix."""
    m_col = o_col < n_cols
    p_x = x + o_row[:, None] * stride_x + o_col[None, :]
    b_x = tl.load(p_x, mask=m_row[:, None] & m_col[None, :], other=0.0).to(tl.float32)
    if FOLDED:
        b_x *= tl.load(fold + o_col, mask=m_col, other=0.0)[None, :]
    return b_x


@triton.jit
def quantize_rows_kernel(
    x,
    fold,
    codes,
    scales,
    n_rows,
    n_cols,
    stride_x,
    LARGEST: tl.constexpr,
    FOLDED: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Fill codes and scales from x, each row read twice, the second time from the cache. Grid (blocks of rows,)."""
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_row = o_row < n_rows
    width = tl.cdiv(n_cols, ROW_ALIGNMENT) * ROW_ALIGNMENT
    b_largest = tl.zeros((ROWS,), dtype=tl.float32)
    for i_col in range(0, n_cols, COLS):
        b_x = load_rows(x, fold, o_row, m_row, i_col + tl.arange(0, COLS), n_cols, stride_x, FOLDED)
        b_x = tl.where(b_x == b_x, tl.abs(b_x), float("inf"))  # max passes over NaN
        b_largest = tl.maximum(b_largest, tl.max(b_x, 1))
    b_finite = b_largest < float("inf")
    b_span = tl.maximum(b_largest, SMALLEST_SPAN)
    b_scale = tl.where(b_finite, tl.div_rn(b_span, LARGEST * 1.0), float("nan"))
    b_inverse = tl.where(b_finite, tl.div_rn(tl.full((ROWS,), LARGEST * 1.0, tl.float32), b_span), 0.0)
    tl.store(scales + o_row, b_scale, mask=m_row)
    for i_col in range(0, width, COLS):
        o_col = i_col + tl.arange(0, COLS)
        b_x = load_rows(x, fold, o_row, m_row, o_col, n_cols, stride_x, FOLDED)
        b_code = tl.where(b_finite[:, None], b_x * b_inverse[:, None], 0.0)
        if STOCHASTIC:
            key = b_scale.to(tl.int32, bitcast=True)[:, None]
            carry = random_fractions(key, o_row[:, None] * n_cols + o_col[None, :])
            b_code = tl.where((o_col < n_cols)[None, :], tl.floor(b_code + carry), 0.0)
        elif codes.dtype.element_ty == tl.int8:
            b_code = round_half_even(b_code)
        b_code = tl.minimum(tl.maximum(b_code, -LARGEST), LARGEST)
        p_code = codes + o_row[:, None] * width + o_col[None, :]
        tl.store(p_code, convert(b_code, codes.dtype.element_ty), mask=m_row[:, None] & (o_col < width)[None, :])


@triton.jit
def transpose_kernel(source, target, n_rows, n_cols, source_width, target_width, SIDE: tl.constexpr):
    """target (n_cols, target_width) = source (n_rows, source_width) transposed, 0 beyond n_rows. Grid (cols, rows)."""
    o_col = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    o_row = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    m_source = (o_row < n_rows)[:, None] & (o_col < n_cols)[None, :]
    b_byte = tl.load(source + o_row[:, None] * source_width + o_col[None, :], mask=m_source, other=0)
    m_target = (o_col < n_cols)[:, None] & (o_row < target_width)[None, :]
    tl.store(target + o_col[:, None] * target_width + o_row[None, :], tl.trans(b_byte), mask=m_target)


def launch_quantize_rows(x: Tensor, fold: Tensor | None, q: RowCodes, stochastic: bool) -> None:
    """Fill `q` with the codes of x (rows, cols), its columns times `fold`."""
    rows, cols = q.shape
    block = min(1024, triton.next_power_of_2(q.codes.shape[1]))
    height = TILE // block
    quantize_rows_kernel[(triton.cdiv(rows, height),)](
        x,
        x if fold is None else fold,
        q.codes,
        q.scales,
        rows,
        cols,
        x.stride(0),
        LARGEST=LARGEST[q.format],
        FOLDED=fold is not None,
        STOCHASTIC=stochastic,
        ROWS=height,
        COLS=block,
        num_warps=4,
        enable_fp_fusion=False,  # a fused multiply and add would round otherwise than the definition
    )


def launch_transpose(q: RowCodes, out: RowCodes) -> None:
    """Fill `out` with the codes of `q`, transposed."""
    rows, cols = q.shape
    source, target = q.codes.view(torch.uint8), out.codes.view(torch.uint8)
    grid = (triton.cdiv(cols, SIDE), triton.cdiv(out.codes.shape[1], SIDE))
    transpose_kernel[grid](source, target, rows, cols, source.shape[1], target.shape[1], SIDE=SIDE, num_warps=4)
