"""Triton kernels of the block-sparse-plus-low-rank linear: products with the blocks, never with a dense matrix.

A block smaller than 64 would leave most of a tensor core idle. So a tile has at least 64 outputs, of as many
block-rows as that takes, and one product reads several blocks at once: each adds to its own outputs, and the others see
zeros in its place. That multiplies the few sparse FLOPs by 64 / b, and reads no byte more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.block_support import BlockSupport
from kernels.triton_helpers import convert, dot, low_rank_tile

TILE = 64
"""Least outputs of a tile, and what one product reads at once: inputs of the blocks, or ranks."""

FP32_DEPTH = 16
"""What one product of fp32 reads at once."""

PROGRAMS = 2 * 132
"""A GPU is busy with this many programs; with fewer blocks, their gradient is split over the tokens. Constant, so that
results do not depend on the GPU."""


@triton.jit
def block_low_rank_kernel(
    x,
    z,
    factor,
    values,
    y,
    ptr,
    blocks,
    inputs,
    outputs,
    n_tokens,
    n_out,
    rank,
    scale,
    stride_x,
    stride_z,
    stride_f_out,
    stride_f_rank,
    stride_y,
    TRANSPOSED: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTS: tl.constexpr,
    INS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """y = scale z factor^T + x S^T, S transposed where TRANSPOSED. Grid (token tiles, output tiles)."""
    i_token, i_out = tl.program_id(0), tl.program_id(1)
    o_token, o_out = tl.arange(0, TOKENS), i_out * OUTS + tl.arange(0, OUTS)
    m_token, m_out = i_token * TOKENS + o_token < n_tokens, o_out < n_out
    x += (i_token * TOKENS).to(tl.int64) * stride_x
    z += (i_token * TOKENS).to(tl.int64) * stride_z
    y += (i_token * TOKENS).to(tl.int64) * stride_y
    acc = low_rank_tile(
        z, factor, o_token, m_token, o_out, m_out, rank, stride_z, stride_f_rank, stride_f_out, RANK_BLOCK
    )
    acc *= scale
    # Within a block, inputs follow one another: said here, because the compiler cannot see it through the index.
    RUN: tl.constexpr = min(BLOCK, INS)
    first, last = i_out * (OUTS // BLOCK), tl.minimum((i_out + 1) * (OUTS // BLOCK), n_out // BLOCK)
    start, end = tl.load(ptr + first), tl.load(ptr + last)
    for i_in in range(0, (end - start) * BLOCK, INS):
        o_in = i_in + tl.arange(0, INS)
        o_entry = start + o_in // BLOCK
        m_in = o_entry < end
        b_input = tl.load(inputs + o_entry, mask=m_in, other=0)
        o_x = tl.max_contiguous(tl.multiple_of(b_input * BLOCK + o_in % BLOCK, RUN), RUN)
        p_x = x + o_token[:, None] * stride_x + o_x[None, :]  # [TOKENS, INS]
        b_x = tl.load(p_x, mask=m_token[:, None] & m_in[None, :], other=0.0)
        b_block = tl.load(blocks + o_entry, mask=m_in, other=0) * (BLOCK * BLOCK)
        if TRANSPOSED:
            p_v = values + (b_block + o_in % BLOCK * BLOCK)[:, None] + (o_out % BLOCK)[None, :]  # [INS, OUTS]
        else:
            o_v = tl.max_contiguous(tl.multiple_of(b_block + o_in % BLOCK, RUN), RUN)
            p_v = values + o_v[:, None] + (o_out % BLOCK * BLOCK)[None, :]  # [INS, OUTS]
        m_v = m_in[:, None] & m_out[None, :]
        if OUTS > BLOCK:
            b_output = tl.max_constancy(tl.load(outputs + o_entry, mask=m_in, other=-1), RUN)
            m_v = m_v & (b_output[:, None] == (o_out // BLOCK)[None, :])
        b_v = tl.load(p_v, mask=m_v, other=0.0)
        acc = dot(b_x, b_v, acc)
    p_y = y + o_token[:, None] * stride_y + o_out[None, :]
    tl.store(p_y, convert(acc, y.dtype.element_ty), mask=m_token[:, None] & m_out[None, :])


@triton.jit
def block_gradient_kernel(
    grad_y,
    x,
    columns,
    out,
    n_tokens,
    n_out,
    n_blocks,
    k,
    tokens_per_split,
    stride_g,
    stride_x,
    BLOCK: tl.constexpr,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """out[split, block] = grad_y^T x at the block, over the tokens of the split. Grid (SIDE / BLOCK blocks, splits).

    One product of SIDE outputs and the inputs of SIDE / BLOCK blocks; what belongs to no block is thrown away.
    """
    i_blocks, i_split = tl.program_id(0), tl.program_id(1)
    o_side = tl.arange(0, SIDE)
    o_block = i_blocks * (SIDE // BLOCK) + o_side // BLOCK
    m_block = o_block < n_blocks
    o_out = i_blocks // k * SIDE + o_side  # as many block-rows as blocks: theirs begin at a multiple of k programs
    m_out = o_out < n_out
    b_column = tl.load(columns + o_block, mask=m_block, other=0)
    o_in = tl.max_contiguous(tl.multiple_of(b_column * BLOCK + o_side % BLOCK, BLOCK), BLOCK)
    start = i_split * tokens_per_split
    end = tl.minimum(start + tokens_per_split, n_tokens)
    acc = tl.zeros((SIDE, SIDE), dtype=tl.float32)
    for i_token in range(start, end, TOKENS):
        o_token = i_token + tl.arange(0, TOKENS)
        m_token = o_token < end
        p_g = grad_y + o_out[:, None] + o_token[None, :].to(tl.int64) * stride_g  # [SIDE, TOKENS]
        b_g = tl.load(p_g, mask=m_out[:, None] & m_token[None, :], other=0.0)
        p_x = x + o_token[:, None].to(tl.int64) * stride_x + o_in[None, :]  # [TOKENS, SIDE]
        b_x = tl.load(p_x, mask=m_token[:, None] & m_block[None, :], other=0.0)
        acc = dot(b_g, b_x, acc)
    out += i_split.to(tl.int64) * n_blocks * (BLOCK * BLOCK)
    p_out = out + (o_out % BLOCK * BLOCK)[:, None] + (o_block * (BLOCK * BLOCK) + o_side % BLOCK)[None, :]
    m_own = m_block[None, :] & ((o_out // BLOCK)[:, None] == (o_block // k)[None, :])
    tl.store(p_out, convert(acc, out.dtype.element_ty), mask=m_own)


def launch_block_low_rank(
    x: Tensor,
    z: Tensor,
    factor: Tensor,
    values: Tensor,
    support: BlockSupport,
    scale: float,
    transposed: bool,
    y: Tensor,
) -> None:
    """y (T, n) = scale z factor^T + x S^T; S for S^T when `transposed`.

    x (T, in), or (T, out) when `transposed`; z (T, rank); x, z and y have rows of stride 1. factor (n, rank) of any
    strides. values are contiguous. x, z, factor and values have one dtype.
    """
    index = support.index(transposed)
    (n_tokens, n_out), rank = y.shape, z.shape[1]
    outs = max(TILE, support.block)
    # 64 accumulators a thread; a quarter with fp32 operands, which no tensor core multiplies: with more, or with deeper
    # products, a thread keeps more operands than there are registers.
    tokens = 128 * 128 // outs // (4 if x.dtype == torch.float32 else 1)
    deep = FP32_DEPTH if x.dtype == torch.float32 else TILE
    grid = (triton.cdiv(n_tokens, tokens), triton.cdiv(n_out, outs))
    block_low_rank_kernel[grid](
        x,
        z,
        factor,
        values,
        y,
        *index,
        n_tokens,
        n_out,
        rank,
        scale,
        x.stride(0),
        z.stride(0),
        factor.stride(0),
        factor.stride(1),
        y.stride(0),
        TRANSPOSED=transposed,
        BLOCK=support.block,
        TOKENS=tokens,
        OUTS=outs,
        INS=deep,
        RANK_BLOCK=min(deep, max(16, triton.next_power_of_2(rank))),
        num_warps=8,
        num_stages=3,
    )


def launch_block_gradient(grad_y: Tensor, x: Tensor, support: BlockSupport, out: Tensor) -> None:
    """out (n_blocks, b, b) = grad_y^T x at the support, for grad_y (T, out) and x (T, in) with rows of stride 1."""
    side = max(TILE, support.block)
    programs = triton.cdiv(support.n_blocks * support.block, side)
    tokens = 128 // x.element_size()
    splits = max(1, min(triton.cdiv(PROGRAMS, programs), x.shape[0] // (4 * tokens)))
    partial = out if splits == 1 else torch.empty(splits, *out.shape, dtype=torch.float32, device=out.device)
    block_gradient_kernel[(programs, splits)](
        grad_y,
        x,
        support.columns,
        partial,
        x.shape[0],
        support.shape[0],
        support.n_blocks,
        support.k,
        triton.cdiv(triton.cdiv(x.shape[0], splits), tokens) * tokens,
        grad_y.stride(0),
        x.stride(0),
        BLOCK=support.block,
        SIDE=side,
        TOKENS=tokens,
        num_warps=4 if side == TILE else 8,
        num_stages=3,
    )
    if splits > 1:
        out.copy_(partial.sum(0))
