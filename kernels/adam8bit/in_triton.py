"""Triton kernel of 8-bit Adam: everything is read once and written once.

Multiplications and additions are not fused, roots and quotients are rounded correctly: so the codes are those of the
definition on every device, and a run that changes its device continues exactly.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.adam8bit.state import BLOCK, SMALLEST_SCALE, ZERO_SIGNED, Adam8bitState, codebook
from kernels.rounding import signed_key
from kernels.triton_helpers import store_weight

ZERO_CODE = tl.constexpr(ZERO_SIGNED)
MIN_SCALE = tl.constexpr(SMALLEST_SCALE)

ROWS = 4
"""Blocks of 256 elements per program: four elements per thread."""


@triton.jit
def nearest_code(x, codebook):
    """The number of midpoints below `x`, which is its nearest code, by bisection."""
    code = tl.zeros_like(x).to(tl.int32)
    for i in tl.static_range(8):
        code += tl.where(x > tl.load(codebook + 256 + code + ((128 >> i) - 1)), 128 >> i, 0)
    return code


@triton.jit
def store_quantised(x, codes, absmax, codebook, o_element, m_element, o_row, m_row, SIGNED: tl.constexpr):
    """Store `x` [ROWS, BLOCK], 0 where masked, as codes and scales."""
    b_absmax = tl.max(tl.abs(x), 1)  # [ROWS]
    b_one = tl.zeros_like(b_absmax) + 1.0  # div_rn does not broadcast
    b_inverse = tl.div_rn(b_one, tl.where(b_absmax >= MIN_SCALE, b_absmax, 1.0))
    relative = x * b_inverse[:, None]
    code = nearest_code(relative, codebook)
    if SIGNED:
        code -= ((code == ZERO_CODE) & (relative < 0)).to(tl.int32)
    tl.store(codes + o_element, code.to(tl.uint8), mask=m_element)
    tl.store(absmax + o_row, b_absmax, mask=m_row)


@triton.jit(do_not_specialize=["key"])
def adam8bit_kernel(
    target,
    grad,
    exp_avg,
    exp_avg_sq,
    exp_avg_absmax,
    exp_avg_sq_absmax,
    codebook_signed,
    codebook_unsigned,
    hyper,
    key,
    n,
    DIRECTION: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """target = decay * target - lr * direction, or target = direction. Grid (blocks / ROWS,)."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    m_row = o_row * BLOCK < n
    o_element = o_row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]  # [ROWS, BLOCK]
    m_element = o_element < n

    b_grad = tl.load(grad + o_element, mask=m_element, other=0.0).to(tl.float32)
    m_finite = b_grad * b_grad < float("inf")
    b_grad = tl.where(m_finite, b_grad, 0.0)
    b_avg = tl.load(codebook_signed + tl.load(exp_avg + o_element, mask=m_element, other=ZERO_CODE).to(tl.int32))
    b_sq = tl.load(codebook_unsigned + tl.load(exp_avg_sq + o_element, mask=m_element, other=0).to(tl.int32))
    b_avg = b_avg * tl.load(exp_avg_absmax + o_row, mask=m_row, other=0.0)[:, None]
    b_sq = b_sq * tl.load(exp_avg_sq_absmax + o_row, mask=m_row, other=0.0)[:, None]
    b_avg = tl.load(hyper) * b_avg + tl.load(hyper + 1) * b_grad
    b_sq = tl.load(hyper + 2) * b_sq + tl.load(hyper + 3) * (b_grad * b_grad)
    b_avg, b_sq = tl.where(m_finite, b_avg, 0.0), tl.where(m_finite, b_sq, 0.0)

    b_out = tl.div_rn(tl.load(hyper + 4) * b_avg, tl.load(hyper + 5) * tl.sqrt_rn(b_sq) + tl.load(hyper + 6))
    if not DIRECTION:
        b_target = tl.load(target + o_element, mask=m_element, other=0.0).to(tl.float32)
        b_out = tl.load(hyper + 8) * b_target - tl.load(hyper + 7) * b_out
    store_weight(target + o_element, b_out, m_element, key, o_element, STOCHASTIC)
    store_quantised(b_avg, exp_avg, exp_avg_absmax, codebook_signed, o_element, m_element, o_row, m_row, True)
    store_quantised(b_sq, exp_avg_sq, exp_avg_sq_absmax, codebook_unsigned, o_element, m_element, o_row, m_row, False)


def launch_adam8bit(
    target: Tensor, grad: Tensor, state: Adam8bitState, hyper: Tensor, direction: bool, key: int | None = None
) -> None:
    """Update the parameter `target` in place, or write the direction to it; all tensors contiguous, n > 0."""
    n = target.numel()
    adam8bit_kernel[(triton.cdiv(n, ROWS * BLOCK),)](
        target,
        grad,
        state.exp_avg,
        state.exp_avg_sq,
        state.exp_avg_absmax,
        state.exp_avg_sq_absmax,
        codebook(True, grad.device),
        codebook(False, grad.device),
        hyper,
        signed_key(key),
        n,
        DIRECTION=direction,
        STOCHASTIC=key is not None,
        ROWS=ROWS,
        BLOCK=BLOCK,
        num_warps=8,
        enable_fp_fusion=False,
    )
