"""Triton kernels of decompression and the gather. A tile belongs to one program: no atomics, equal bits every time."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.support import TileSupport
from kernels.triton_helpers import convert, low_rank_tile

ENTRIES = 512
"""Sparse entries per iteration: one iteration covers a tile of 128 x 128 at 3 %."""

RANK_BLOCK = 64


@triton.jit
def scatter_tile(
    W, values, loc, tile_ptr, i_tile, row0, col0, stride_w, TILE_COLS: tl.constexpr, ENTRIES: tl.constexpr
):
    """Add the entries of tile `i_tile`, whose first element is (row0, col0), to W in memory."""
    start, end = tl.load(tile_ptr + i_tile), tl.load(tile_ptr + i_tile + 1)
    for i_entry in range(start, end, ENTRIES):
        o_entry = i_entry + tl.arange(0, ENTRIES)
        m_entry = o_entry < end
        b_loc = tl.load(loc + o_entry, mask=m_entry, other=0).to(tl.int32)
        b_value = tl.load(values + o_entry, mask=m_entry, other=0.0).to(tl.float32)
        p_w = W + (row0 + b_loc // TILE_COLS) * stride_w + col0 + b_loc % TILE_COLS
        b_w = tl.load(p_w, mask=m_entry, other=0.0).to(tl.float32)
        tl.store(p_w, convert(b_w + b_value, W.dtype.element_ty), mask=m_entry)


@triton.jit
def scatter_kernel(
    W, values, loc, tile_ptr, stride_w, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr, ENTRIES: tl.constexpr
):
    """W += S. Grid (tile columns, tile rows)."""
    i_col, i_row = tl.program_id(0), tl.program_id(1)
    i_tile = i_row * tl.num_programs(0) + i_col
    row0, col0 = i_row * TILE_ROWS, i_col * TILE_COLS
    scatter_tile(W, values, loc, tile_ptr, i_tile, row0, col0, stride_w, TILE_COLS, ENTRIES)


@triton.jit
def decompress_kernel(
    A,
    B,
    values,
    loc,
    tile_ptr,
    W,
    n_out,
    n_in,
    rank,
    scale,
    stride_a,
    stride_b,
    stride_w,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """W = scale B A + S, each tile written once and its few sparse entries read, added and written again.

    Grid (tile columns, tile rows).
    """
    i_col, i_row = tl.program_id(0), tl.program_id(1)
    row0, col0 = i_row * TILE_ROWS, i_col * TILE_COLS
    o_row = row0 + tl.arange(0, TILE_ROWS)
    o_col = col0 + tl.arange(0, TILE_COLS)
    m_row, m_col = o_row < n_out, o_col < n_in
    acc = low_rank_tile(B, A, o_row, m_row, o_col, m_col, rank, stride_b, stride_a, 1, RANK_BLOCK)
    p_w = W + o_row[:, None] * stride_w + o_col[None, :]
    tl.store(p_w, convert(acc * scale, W.dtype.element_ty), mask=m_row[:, None] & m_col[None, :])
    tl.debug_barrier()  # the entries below are read by other threads than those that wrote them above
    i_tile = i_row * tl.num_programs(0) + i_col
    scatter_tile(W, values, loc, tile_ptr, i_tile, row0, col0, stride_w, TILE_COLS, ENTRIES)


@triton.jit
def tile_gather_kernel(
    dense, out, loc, tile_ptr, stride, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr, ENTRIES: tl.constexpr
):
    """out[e] = dense[position of e]. Grid (tile columns, tile rows)."""
    i_col, i_row = tl.program_id(0), tl.program_id(1)
    i_tile = i_row * tl.num_programs(0) + i_col
    start, end = tl.load(tile_ptr + i_tile), tl.load(tile_ptr + i_tile + 1)
    for i_entry in range(start, end, ENTRIES):
        o_entry = i_entry + tl.arange(0, ENTRIES)
        m_entry = o_entry < end
        b_loc = tl.load(loc + o_entry, mask=m_entry, other=0).to(tl.int32)
        p_dense = dense + (i_row * TILE_ROWS + b_loc // TILE_COLS) * stride + i_col * TILE_COLS + b_loc % TILE_COLS
        b_dense = tl.load(p_dense, mask=m_entry, other=0.0).to(tl.float32)
        tl.store(out + o_entry, convert(b_dense, out.dtype.element_ty), mask=m_entry)


def launch_scatter(W: Tensor, values: Tensor, support: TileSupport) -> None:
    """W (out, in) += S in place."""
    rows, cols = support.tile
    grid = (triton.cdiv(W.shape[1], cols), triton.cdiv(W.shape[0], rows))
    scatter_kernel[grid](
        W,
        values,
        support.loc,
        support.tile_ptr,
        W.stride(0),
        TILE_ROWS=rows,
        TILE_COLS=cols,
        ENTRIES=ENTRIES,
        num_warps=4,
    )


def launch_decompress(A: Tensor, B: Tensor, values: Tensor, support: TileSupport, scale: float, W: Tensor) -> None:
    """W (out, in) = scale B A + S, in one kernel."""
    (n_out, rank), n_in = B.shape, A.shape[1]
    rows, cols = support.tile
    grid = (triton.cdiv(n_in, cols), triton.cdiv(n_out, rows))
    decompress_kernel[grid](
        A,
        B,
        values,
        support.loc,
        support.tile_ptr,
        W,
        n_out,
        n_in,
        rank,
        scale,
        A.stride(0),
        B.stride(0),
        W.stride(0),
        TILE_ROWS=rows,
        TILE_COLS=cols,
        # fp32 operands of 64 would not fit the shared memory of sm_86, 89 and 120.
        RANK_BLOCK=16 if A.dtype == torch.float32 else min(RANK_BLOCK, max(16, triton.next_power_of_2(rank))),
        ENTRIES=ENTRIES,
        num_warps=8,
        num_stages=3,
    )


def launch_tile_gather(dense: Tensor, support: TileSupport, out: Tensor) -> None:
    """out (nnz,) = the entries of dense (out, in) at `support`, in tile order."""
    rows, cols = support.tile
    grid = (triton.cdiv(dense.shape[1], cols), triton.cdiv(dense.shape[0], rows))
    tile_gather_kernel[grid](
        dense,
        out,
        support.loc,
        support.tile_ptr,
        dense.stride(0),
        TILE_ROWS=rows,
        TILE_COLS=cols,
        ENTRIES=ENTRIES,
        num_warps=4,
    )
