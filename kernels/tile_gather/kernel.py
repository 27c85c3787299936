"""Triton kernel of the gather: a program reads its tile's entries and writes them one after another."""

import triton
import triton.language as tl
from torch import Tensor

from kernels.decompress.kernel import ENTRIES
from kernels.support import TileSupport
from kernels.triton_helpers import convert


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
