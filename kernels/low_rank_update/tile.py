"""One tile of a product of low rank, and of the weight it updates: what the update kernels share."""

import triton
import triton.language as tl

from kernels.quant.kernel import load_codes
from kernels.triton_helpers import convert, convert_stochastic, dot, random_bits


@triton.jit
def load_factor(
    F,
    scales,
    zeros,
    o_row,
    m_row,
    col0,
    n_cols,
    stride,
    DTYPE: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    COLS: tl.constexpr,
):
    """A tile [ROWS, COLS] of a factor from column `col0` on, in DTYPE; dequantised unless BITS is 0.

    GROUP is a multiple of COLS, and `col0` too: the tile lies in one group of each row.
    """
    if BITS == 0:
        o_col = col0 + tl.arange(0, COLS)
        p_factor = F + o_row[:, None] * stride + o_col[None, :]
        return tl.load(p_factor, mask=m_row[:, None] & (o_col < n_cols)[None, :], other=0.0)
    else:
        b_code = load_codes(F, o_row, m_row, col0, n_cols, BITS, COLS)
        o_scale = o_row * tl.cdiv(n_cols, GROUP) + col0 // GROUP
        b_scale = tl.load(scales + o_scale, mask=m_row, other=0.0)
        b_zero = tl.load(zeros + o_scale, mask=m_row, other=0).to(tl.int32)
        return convert((b_code - b_zero[:, None]).to(tl.float32) * b_scale[:, None], DTYPE)


@triton.jit
def low_rank_tile(
    P,
    p_scales,
    p_zeros,
    N,
    n_scales,
    n_zeros,
    o_row,
    m_row,
    col0,
    n_cols,
    rank,
    stride_p,
    stride_n,
    DTYPE: tl.constexpr,
    P_BITS: tl.constexpr,
    P_GROUP: tl.constexpr,
    N_BITS: tl.constexpr,
    N_GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """fp32 tile [ROWS, COLS] of P N, both multiplied in DTYPE: rows `o_row`, columns from `col0` on."""
    acc = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for i_rank in range(0, rank, RANK_BLOCK):
        o_rank = i_rank + tl.arange(0, RANK_BLOCK)
        b_p = load_factor(
            P, p_scales, p_zeros, o_row, m_row, i_rank, rank, stride_p, DTYPE, P_BITS, P_GROUP, RANK_BLOCK
        )
        b_n = load_factor(
            N, n_scales, n_zeros, o_rank, o_rank < rank, col0, n_cols, stride_n, DTYPE, N_BITS, N_GROUP, COLS
        )  # [RANK, COLS]
        acc = dot(b_p, b_n, acc)
    return acc


@triton.jit
def store_weight(p_w, b_w, mask, key, o_flat, STOCHASTIC: tl.constexpr):
    """Store fp32 b_w to nearest even, or to bf16 stochastically by the key and the flat position of each element."""
    if STOCHASTIC:
        tl.store(p_w, convert_stochastic(b_w, random_bits(key, o_flat)), mask=mask)
    else:
        tl.store(p_w, convert(b_w, p_w.dtype.element_ty), mask=mask)


@triton.jit
def decayed(hyper, DECAY_AFTER: tl.constexpr):
    """What W and the update are multiplied by, from hyper = (lr, scale, weight decay): the decay, and the rate."""
    rate = tl.load(hyper)
    decay = 1.0 - rate * tl.load(hyper + 2)
    if DECAY_AFTER:
        rate *= decay
    return decay, rate
