"""What every Triton kernel here needs: products, rounding and random bits that are right on a GPU and interpreted.

The interpreter keeps bf16 as bit patterns: it multiplies them as integers and truncates on conversion, without a word.
So a kernel loads, converts to fp32 at once, calculates in fp32, and goes through these functions at both ends.
"""

import triton
import triton.language as tl

from kernels import backend

INTERPRETED = tl.constexpr(backend.INTERPRETED)


@triton.jit
def dot(a, b, acc):
    """acc + a @ b in fp32; fp32 operands are multiplied exactly, not as TF32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def convert(x, dtype: tl.constexpr):
    """fp32 `x` as `dtype`, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
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
