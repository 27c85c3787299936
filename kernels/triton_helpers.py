"""Device functions that Triton kernels here share: products, rounding and random bits, right on a GPU and interpreted.

The interpreter keeps bf16 as bit patterns: it multiplies them as integers and truncates on conversion, without a word.
So a kernel loads, converts to fp32 at once, calculates in fp32, and goes through these functions at both ends.
"""

import triton
import triton.language as tl

from kernels import backend

INTERPRETED = tl.constexpr(backend.INTERPRETED)


@triton.jit
def dot(a, b, acc):
    """acc + a @ b in fp32, of int8 operands in int32; fp32 operands are multiplied exactly, not as TF32."""
    if a.dtype == tl.int8:
        return tl.dot(a, b, acc, out_dtype=tl.int32)
    elif INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    elif a.dtype == tl.float8e4nv:
        # Hopper sums FP8 products in 14 bits or so: fp32 takes over after each block.
        return tl.dot(a, b, acc, max_num_imprecise_acc=a.shape[1])
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def round_half_even(x):
    """fp32 `x` below 2^22 as the nearest integer, still fp32; of two the even one."""
    return (x + 12582912.0) - 12582912.0  # 1.5 * 2^23, next to which fp32 has no fractions


@triton.jit
def to_e4m3(x):
    """fp32 `x` on the grid of e4m3, still fp32: 3 mantissa bits, in steps of 2^-9 below 2^-6, at most 448."""
    bits = x.to(tl.uint32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000).to(tl.float32, bitcast=True)
    small = (tl.abs(x) + 24576.0) - 24576.0  # 1.5 * 2^14, next to which fp32 has steps of 2^-9
    small = (small.to(tl.uint32, bitcast=True) | (bits & 0x80000000)).to(tl.float32, bitcast=True)
    rounded = tl.where(tl.abs(x) < 0.015625, small, normal)
    return tl.where(x == x, tl.minimum(tl.maximum(rounded, -448.0), 448.0), x)


@triton.jit
def convert(x, dtype: tl.constexpr):
    """fp32 `x` as `dtype`, rounded to nearest even; e4m3 takes what is larger than 448 as 448."""
    if INTERPRETED and dtype == tl.float8e4nv:
        return to_e4m3(x).to(dtype)  # of numbers on the grid the interpreter's cast is right
    elif INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        rounded = tl.where(x != x, bits | 0x400000, rounded)  # a NaN must not round to infinity
        return rounded.to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        return x.to(dtype)


@triton.jit
def convert_stochastic(x, bits):
    """fp32 `x` as bf16: up or down with the probability that makes it right on average. `bits` are random uint32."""
    pattern = x.to(tl.uint32, bitcast=True)
    rounded = (pattern + (bits & 0xFFFF)) & 0xFFFF0000
    # Infinity and NaN have no neighbours: their patterns must not be added to.
    rounded = tl.where((pattern & 0x7F800000) == 0x7F800000, pattern | ((x != x).to(tl.uint32) << 22), rounded)
    return (rounded & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def random_bits(key, offset):
    """32 random bits (uint32) for each element of `offset`, a function of the 32-bit `key` and the offset alone.

    Two rounds of MurmurHash3's finaliser; a third of the instructions of Triton's Philox.
    """
    x = offset.to(tl.uint32) ^ key.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    x = (x ^ (x >> 16)) + key.to(tl.uint32) * 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def random_fractions(key, offset):
    """fp32 in (0, 1) for each element of `offset`: odd multiples of 2^-16."""
    return ((random_bits(key, offset) >> 17) * 2 + 1).to(tl.float32) * 0.0000152587890625


@triton.jit
def low_rank_tile(
    left, right, o_row, m_row, o_col, m_col, rank, stride_left, stride_rank, stride_col, RANK_BLOCK: tl.constexpr
):
    """fp32 tile [ROWS, COLS] of left (rows, rank) times right (rank, cols), at `o_row` and `o_col` where masked in."""
    acc = tl.zeros((o_row.shape[0], o_col.shape[0]), dtype=tl.float32)
    for i_rank in range(0, rank, RANK_BLOCK):
        o_rank = i_rank + tl.arange(0, RANK_BLOCK)
        m_rank = o_rank < rank
        p_left = left + o_row[:, None] * stride_left + o_rank[None, :]  # [ROWS, RANK]
        b_left = tl.load(p_left, mask=m_row[:, None] & m_rank[None, :], other=0.0)
        p_right = right + o_rank[:, None] * stride_rank + o_col[None, :] * stride_col  # [RANK, COLS]
        b_right = tl.load(p_right, mask=m_rank[:, None] & m_col[None, :], other=0.0)
        acc = dot(b_left, b_right, acc)
    return acc


@triton.jit
def decayed(hyper, DECAY_AFTER: tl.constexpr):
    """What W and the update are multiplied by, from hyper = (lr, scale, weight decay): the decay, and the rate."""
    rate = tl.load(hyper)
    decay = 1.0 - rate * tl.load(hyper + 2)
    if DECAY_AFTER:
        rate *= decay
    return decay, rate


@triton.jit
def store_weight(p_w, b_w, mask, key, o_flat, STOCHASTIC: tl.constexpr):
    """Store fp32 b_w to nearest even, or to bf16 stochastically by the key and the flat position of each element."""
    if STOCHASTIC:
        tl.store(p_w, convert_stochastic(b_w, random_bits(key, o_flat)), mask=mask)
    else:
        tl.store(p_w, convert(b_w, p_w.dtype.element_ty), mask=mask)
