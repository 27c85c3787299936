"""The Triton kernel of the low-rank weight update: a product whose epilogue reads, changes and writes W once."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rounding import signed_key
from kernels.triton_helpers import decayed, low_rank_tile, store_weight

MANY_TILES = 256
"""Fewer tiles of 128 x 64 than this leave most GPUs' multiprocessors idle: smaller ones are taken."""

BOUND_BY_MEMORY = 256
"""Up to this rank moving W takes longer than the product on most GPUs."""


@triton.jit(do_not_specialize=["key"])
def low_rank_update_kernel(
    W,
    P,
    N,
    hyper,
    n_rows,
    n_cols,
    rank,
    key,
    stride_w,
    stride_p,
    stride_n,
    STOCHASTIC: tl.constexpr,
    DECAY_AFTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """W <- decay W - rate scale P N. Grid (blocks of columns, blocks of rows)."""
    o_row, o_col = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    m_row, m_col = o_row < n_rows, o_col < n_cols
    acc = low_rank_tile(P, N, o_row, m_row, o_col, m_col, rank, stride_p, stride_n, 1, RANK_BLOCK)
    decay, rate = decayed(hyper, DECAY_AFTER)
    m_w = m_row[:, None] & m_col[None, :]
    p_w = W + o_row[:, None] * stride_w + o_col[None, :]  # [ROWS, COLS]
    b_w = tl.load(p_w, mask=m_w, other=0.0).to(tl.float32)
    b_w = decay * b_w - rate * tl.load(hyper + 1) * acc
    store_weight(p_w, b_w, m_w, key, o_row[:, None] * n_cols + o_col[None, :], STOCHASTIC)


def launch_low_rank_update(W: Tensor, P: Tensor, N: Tensor, hyper: Tensor, key: int | None, decay_after: bool) -> None:
    """Change W (rows, cols) fp32 or bf16 in place; hyper = (lr, scale, weight decay) fp32 on the device."""
    grid, tile = weight_tiles(W, P)
    low_rank_update_kernel[grid](
        W,
        P,
        N,
        hyper,
        *W.shape,
        P.shape[1],
        signed_key(key),
        W.stride(0),
        P.stride(0),
        N.stride(0),
        STOCHASTIC=key is not None,
        DECAY_AFTER=decay_after,
        **tile,
    )


def weight_tiles(W: Tensor, left: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid over a W (rows, cols) that a product `left` (rows, rank) right changes; sizes and options of a tile."""
    (n_rows, n_cols), rank = W.shape, left.shape[1]
    if left.dtype == torch.float32:  # no tensor core multiplies fp32
        rows, cols, block, num_warps = 64, 64, 16, 4
    elif n_cols % 16 or triton.cdiv(n_rows, 128) * triton.cdiv(n_cols, 64) < MANY_TILES:
        # Elements that are loaded one by one, for want of alignment, would spill the registers of larger tiles.
        rows, cols, block, num_warps = 64, 64, 32, 4
    elif rank <= BOUND_BY_MEMORY:  # several programs on a multiprocessor: while one multiplies, another moves W
        rows, cols, block, num_warps = 128, 64, 32, 4
    else:
        rows, cols, block, num_warps = 128, 128, 64, 8
    grid = triton.cdiv(n_cols, cols), triton.cdiv(n_rows, rows)
    return grid, {"ROWS": rows, "COLS": cols, "RANK_BLOCK": block, "num_warps": num_warps, "num_stages": 3}
