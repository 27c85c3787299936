"""Triton kernels of group quantisation. A group belongs to one program."""

import triton
import triton.language as tl
from torch import Tensor

from kernels.quant.format import ALIGNMENT, TINY, Quantized
from kernels.rounding import signed_key
from kernels.triton_helpers import convert, random_fractions

TILE = 2048
"""Elements per program."""

SMALLEST_RANGE = tl.constexpr(TINY)
ROW_ALIGNMENT = tl.constexpr(ALIGNMENT)


@triton.jit
def quantize_groups(b_w, carry, LEVELS: tl.constexpr):
    """Codes (fp32) of b_w [ROWS, GROUP], a group in each row, 0 beyond its end; scales and zeros (fp32) [ROWS].

    `carry` is what rounding adds before it cuts off: 0.5, or random fractions.
    """
    b_high = tl.max(tl.where(b_w == b_w, b_w, float("inf")), 1)  # max passes over NaN
    b_low = tl.minimum(tl.min(b_w, 1), 0.0)
    b_span = tl.maximum(b_high, 0.0) - b_low
    b_finite = b_span < float("inf")
    b_scale = tl.where(b_finite, tl.div_rn(tl.maximum(b_span, SMALLEST_RANGE), LEVELS * 1.0), float("nan"))
    b_inverse = tl.where(b_finite, tl.div_rn(1.0, b_scale), 0.0)
    b_zero = tl.where(b_finite, tl.minimum(tl.floor(-b_low * b_inverse + 0.5), LEVELS), 0.0)
    b_code = b_w * b_inverse[:, None] + (b_zero[:, None] + carry)
    b_code = tl.where(b_finite[:, None], tl.minimum(tl.maximum(b_code, 0.0), LEVELS), 0.0)
    return b_code, b_scale, b_zero


@triton.jit
def code_pointers(codes, o_row, m_row, col0, n_cols, BITS: tl.constexpr, COLS: tl.constexpr):
    """Pointers and mask of the bytes of COLS columns from `col0`, a multiple of COLS, on."""
    width = tl.cdiv(n_cols * BITS, 8 * ROW_ALIGNMENT) * ROW_ALIGNMENT
    o_byte = col0 * BITS // 8 + tl.arange(0, COLS * BITS // 8)
    return codes + o_row[:, None] * width + o_byte[None, :], m_row[:, None] & (o_byte < width)[None, :]


@triton.jit
def load_codes(codes, o_row, m_row, col0, n_cols, BITS: tl.constexpr, COLS: tl.constexpr):
    """Codes (int32) [ROWS, COLS] from column `col0` on; 0 beyond the matrix."""
    p_byte, m_byte = code_pointers(codes, o_row, m_row, col0, n_cols, BITS, COLS)
    b_byte = tl.load(p_byte, mask=m_byte, other=0).to(tl.int32)
    if BITS == 8:
        return b_byte
    else:
        return tl.interleave(b_byte & 15, b_byte >> 4)


@triton.jit
def store_codes(codes, b_code, o_row, m_row, col0, n_cols, BITS: tl.constexpr, COLS: tl.constexpr):
    """Store the codes (fp32, cut off here) [ROWS, COLS] from column `col0` on; 0 beyond the last column."""
    p_byte, m_byte = code_pointers(codes, o_row, m_row, col0, n_cols, BITS, COLS)
    b_code = tl.where((col0 + tl.arange(0, COLS) < n_cols)[None, :], b_code, 0.0).to(tl.uint8)
    if BITS == 8:
        tl.store(p_byte, b_code, mask=m_byte)
    else:
        even, odd = tl.split(tl.reshape(b_code, (b_code.shape[0], COLS // 2, 2)))
        tl.store(p_byte, even | (odd << 4), mask=m_byte)


@triton.jit(do_not_specialize=["key"])
def quantize_kernel(
    W,
    codes,
    scales,
    zeros,
    n_rows,
    n_cols,
    key,
    stride_w,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Fill codes, scales and zeros from W. Grid (blocks of rows * groups of a row,)."""
    n_groups = tl.cdiv(n_cols, GROUP)
    i_group, i_row = tl.program_id(0) % n_groups, tl.program_id(0) // n_groups
    o_row = i_row * ROWS + tl.arange(0, ROWS)
    o_col = i_group * GROUP + tl.arange(0, GROUP)
    m_row = o_row < n_rows
    p_w = W + o_row[:, None] * stride_w + o_col[None, :]
    b_w = tl.load(p_w, mask=m_row[:, None] & (o_col < n_cols)[None, :], other=0.0).to(tl.float32)  # [ROWS, GROUP]
    if STOCHASTIC:
        carry = random_fractions(key, o_row[:, None] * n_cols + o_col[None, :])
    else:
        carry = 0.5
    b_code, b_scale, b_zero = quantize_groups(b_w, carry, (1 << BITS) - 1)
    store_codes(codes, b_code, o_row, m_row, i_group * GROUP, n_cols, BITS, GROUP)
    o_scale = o_row * n_groups + i_group
    tl.store(scales + o_scale, b_scale, mask=m_row)
    tl.store(zeros + o_scale, b_zero.to(tl.uint8), mask=m_row)


@triton.jit
def dequantize_kernel(
    codes,
    scales,
    zeros,
    W,
    n_rows,
    n_cols,
    stride_w,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Fill W from codes, scales and zeros. Grid (blocks of rows * groups of a row,)."""
    n_groups = tl.cdiv(n_cols, GROUP)
    i_group, i_row = tl.program_id(0) % n_groups, tl.program_id(0) // n_groups
    o_row = i_row * ROWS + tl.arange(0, ROWS)
    o_col = i_group * GROUP + tl.arange(0, GROUP)
    m_row = o_row < n_rows
    b_code = load_codes(codes, o_row, m_row, i_group * GROUP, n_cols, BITS, GROUP)  # [ROWS, GROUP]
    o_scale = o_row * n_groups + i_group
    b_scale = tl.load(scales + o_scale, mask=m_row, other=0.0)
    b_zero = tl.load(zeros + o_scale, mask=m_row, other=0).to(tl.int32)
    b_w = (b_code - b_zero[:, None]).to(tl.float32) * b_scale[:, None]
    p_w = W + o_row[:, None] * stride_w + o_col[None, :]
    tl.store(p_w, convert(b_w, W.dtype.element_ty), mask=m_row[:, None] & (o_col < n_cols)[None, :])


def launch_quantize(W: Tensor, q: Quantized, key: int | None) -> None:
    """Fill `q` with the codes of W (rows, cols)."""
    rows, n_groups = q.scales.shape
    block = TILE // q.group
    quantize_kernel[(triton.cdiv(rows, block) * n_groups,)](
        W,
        q.codes,
        q.scales,
        q.zeros,
        *q.shape,
        signed_key(key),
        W.stride(0),
        BITS=q.bits,
        GROUP=q.group,
        ROWS=block,
        STOCHASTIC=key is not None,
        num_warps=4,
        enable_fp_fusion=False,  # a fused multiply and add would round otherwise than the definition
    )


def launch_dequantize(q: Quantized, W: Tensor) -> None:
    """Fill W (rows, cols) with the matrix of `q`."""
    rows, n_groups = q.scales.shape
    block = TILE // q.group
    dequantize_kernel[(triton.cdiv(rows, block) * n_groups,)](
        q.codes,
        q.scales,
        q.zeros,
        W,
        *q.shape,
        W.stride(0),
        BITS=q.bits,
        GROUP=q.group,
        ROWS=block,
        num_warps=4,
    )
