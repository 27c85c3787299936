"""Triton kernels of the scaled update: one small program limits the scaling, then one pass changes W.

Every element of G is multiplied by scaling[row * step_row + col * step_col]: a step of 0 holds for all rows or columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fira_update.in_triton import SMALLEST, shrinkage
from kernels.rounding import signed_key
from kernels.triton_helpers import decayed, store_weight

ROWS, COLS = 4, 512

BLOCK = 1024
"""Numbers of the scaling that the one program of the limiter reads at a time."""


@triton.jit
def limit_growth_kernel(norms, scaling, state, limited, n_vectors, BLOCK: tl.constexpr):
    """limited (n_vectors,) = scaling / limiter and the limiter's `state`, from `norms` of G's vectors. One program."""
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for i_vector in range(0, n_vectors, BLOCK):
        o_vector = i_vector + tl.arange(0, BLOCK)
        m_vector = o_vector < n_vectors
        b_norm = tl.load(norms + o_vector, mask=m_vector, other=0.0)
        b_norm *= tl.load(scaling + o_vector, mask=m_vector, other=0.0)
        acc += b_norm * b_norm
    norm = tl.sqrt_rn(tl.sum(acc, 0))
    previous = tl.load(state)
    c = shrinkage(norm, previous)
    tl.store(state, tl.where(norm > SMALLEST, norm * c, previous))
    for i_vector in range(0, n_vectors, BLOCK):
        o_vector = i_vector + tl.arange(0, BLOCK)
        m_vector = o_vector < n_vectors
        tl.store(limited + o_vector, c * tl.load(scaling + o_vector, mask=m_vector, other=0.0), mask=m_vector)


@triton.jit(do_not_specialize=["key"])
def scaled_update_kernel(
    W,
    G,
    scaling,
    hyper,
    n_rows,
    n_cols,
    key,
    stride_w,
    stride_g,
    STEP_ROW: tl.constexpr,
    STEP_COL: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DECAY_AFTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """W <- decay W - rate scaling G. Grid (blocks of columns, blocks of rows)."""
    o_row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    o_col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    m_row, m_col = (o_row < n_rows)[:, None], (o_col < n_cols)[None, :]
    m_w = m_row & m_col
    b_s_row = tl.load(scaling + o_row[:, None] * STEP_ROW, mask=m_row, other=0.0)  # [ROWS, 1]
    b_s = b_s_row if STEP_COL == 0 else tl.load(scaling + o_col[None, :], mask=m_col, other=0.0)
    b_g = tl.load(G + o_row[:, None] * stride_g + o_col[None, :], mask=m_w, other=0.0).to(tl.float32)  # [ROWS, COLS]
    decay, rate = decayed(hyper, DECAY_AFTER)
    p_w = W + o_row[:, None] * stride_w + o_col[None, :]
    b_w = tl.load(p_w, mask=m_w, other=0.0).to(tl.float32)
    b_w = decay * b_w - rate * (b_s * b_g)
    store_weight(p_w, b_w, m_w, key, o_row[:, None] * n_cols + o_col[None, :], STOCHASTIC)


def launch_limit_growth(state: Tensor, G: Tensor, scaling: Tensor) -> Tensor:
    """Change `state` in place; the limited scaling."""
    dim = None if scaling.numel() == 1 else int(scaling.shape[0] > 1)
    norms = torch.linalg.vector_norm(G, dim=dim, dtype=torch.float32)
    limited = torch.empty_like(scaling, memory_format=torch.contiguous_format)
    limit_growth_kernel[(1,)](
        norms, scaling.contiguous(), state, limited, scaling.numel(), BLOCK=BLOCK, num_warps=4
    )  # fmt: skip
    return limited


def launch_scaled_update(
    W: Tensor, G: Tensor, scaling: Tensor, hyper: Tensor, key: int | None, decay_after: bool
) -> None:
    """Change W in place; hyper = (lr, unused, weight decay) fp32 on the device."""
    rows, cols = W.shape
    scaled_update_kernel[triton.cdiv(cols, COLS), triton.cdiv(rows, ROWS)](
        W,
        G,
        scaling.contiguous(),
        hyper,
        rows,
        cols,
        signed_key(key),
        W.stride(0),
        G.stride(0),
        STEP_ROW=int(scaling.shape[0] > 1),
        STEP_COL=int(scaling.shape[1] > 1),
        STOCHASTIC=key is not None,
        DECAY_AFTER=decay_after,
        ROWS=ROWS,
        COLS=COLS,
        num_warps=4,
    )
