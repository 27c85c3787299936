"""Triton kernels of the products of codes. Both factors are read along their rows, as tensor cores take 8 bits."""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.code_product.in_torch import SIGN
from kernels.measured import fastest
from kernels.quant.format import Quantized
from kernels.row_codes.format import RowCodes
from kernels.triton_helpers import convert, dot

SWIZZLE = 8
"""Rows of tiles that are finished before the next ones begin, so that the cache serves both factors."""

SIGN_BIT = tl.constexpr(SIGN)

DEPTH = 128
"""Columns that are multiplied at once; a group of codes is a multiple of 64."""


@triton.jit
def tile_of_program(n_rows, n_cols, ROWS: tl.constexpr, COLS: tl.constexpr, SWIZZLE: tl.constexpr):
    """Row and column of this program's tile, column by column within SWIZZLE rows of tiles."""
    tall, wide = tl.cdiv(n_rows, ROWS), tl.cdiv(n_cols, COLS)
    i_band = tl.program_id(0) // (SWIZZLE * wide)
    height = tl.minimum(tall - i_band * SWIZZLE, SWIZZLE)
    i_inside = tl.program_id(0) % (SWIZZLE * wide)
    return i_band * SWIZZLE + i_inside % height, i_inside // height


@triton.jit
def load_codes(codes, o_row, m_row, o_depth, depth, width):
    """Codes [ROWS, DEPTH]; 0 beyond the matrix."""
    p_code = codes + o_row[:, None] * width + o_depth[None, :]
    return tl.load(p_code, mask=m_row[:, None] & (o_depth < depth)[None, :], other=0.0)


@triton.jit
def product_kernel(
    a,
    a_scales,
    b,
    b_scales,
    y,
    n_rows,
    n_cols,
    width,
    stride_y,
    SCALED: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    """y = a b^T, by the scales of a's rows and, where SCALED, of b's. Grid (tiles,). EVEN: DEPTH divides the width."""
    i_row, i_col = tile_of_program(n_rows, n_cols, ROWS, COLS, SWIZZLE)
    o_row, o_col = i_row * ROWS + tl.arange(0, ROWS), i_col * COLS + tl.arange(0, COLS)
    m_row, m_col = o_row < n_rows, o_col < n_cols
    sums = tl.zeros((ROWS, COLS), dtype=tl.int32 if a.dtype.element_ty == tl.int8 else tl.float32)
    for i_depth in range(0, width, DEPTH):
        o_depth = i_depth + tl.arange(0, DEPTH)
        depth = i_depth + DEPTH if EVEN else width
        b_a = load_codes(a, o_row, m_row, o_depth, depth, width)
        b_b = load_codes(b, o_col, m_col, o_depth, depth, width)
        sums = dot(b_a, tl.trans(b_b), sums)
    b_y = sums.to(tl.float32) * tl.load(a_scales + o_row, mask=m_row, other=0.0)[:, None]
    if SCALED:
        b_y *= tl.load(b_scales + o_col, mask=m_col, other=0.0)[None, :]
    p_y = y + o_row[:, None].to(tl.int64) * stride_y + o_col[None, :]  # y may have 2^31 elements and more
    tl.store(p_y, convert(b_y, y.dtype.element_ty), mask=m_row[:, None] & m_col[None, :])


@triton.jit
def group_product_kernel(
    a,
    a_scales,
    a_sums,
    w,
    w_scales,
    w_zeros,
    y,
    n_rows,
    n_cols,
    a_width,
    w_width,
    n_groups,
    stride_y,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    """y = a W^T with W's codes as they lie: integers within a group, fp32 from group to group. Grid (tiles,).

    A group's sum of a (w - zero) is that of a (w - 128), signed codes, less (zero - 128) times the sum of a.
    """
    i_row, i_col = tile_of_program(n_rows, n_cols, ROWS, COLS, SWIZZLE)
    o_row, o_col = i_row * ROWS + tl.arange(0, ROWS), i_col * COLS + tl.arange(0, COLS)
    m_row, m_col = o_row < n_rows, o_col < n_cols
    b_y = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for i_group in range(0, n_groups):
        sums = tl.zeros((ROWS, COLS), dtype=tl.int32)
        for i_part in tl.static_range(GROUP // DEPTH):
            o_depth = i_group * GROUP + i_part * DEPTH + tl.arange(0, DEPTH)
            b_a = load_codes(a, o_row, m_row, o_depth, a_width, a_width)
            b_w = load_codes(w, o_col, m_col, o_depth, w_width, w_width)
            sums = dot(b_a, tl.trans((b_w ^ SIGN_BIT).to(tl.int8, bitcast=True)), sums)
        b_sum = tl.load(a_sums + o_row * n_groups + i_group, mask=m_row, other=0)
        o_scale = o_col * n_groups + i_group
        b_zero = tl.load(w_zeros + o_scale, mask=m_col, other=0).to(tl.int32) - SIGN_BIT
        sums -= b_sum[:, None] * b_zero[None, :]
        b_y += sums.to(tl.float32) * tl.load(w_scales + o_scale, mask=m_col, other=0.0)[None, :]
    b_y *= tl.load(a_scales + o_row, mask=m_row, other=0.0)[:, None]
    p_y = y + o_row[:, None].to(tl.int64) * stride_y + o_col[None, :]  # y may have 2^31 elements and more
    tl.store(p_y, convert(b_y, y.dtype.element_ty), mask=m_row[:, None] & m_col[None, :])


@dataclass(frozen=True)
class Tile:
    """The part of a product that one program computes, DEPTH columns at a time."""

    rows: int
    cols: int
    warps: int
    stages: int
    """Blocks of columns that are on their way, or multiplied, at once."""

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


SMALL_TILES = (Tile(128, 128, 8, 4), Tile(128, 64, 4, 4), Tile(64, 128, 4, 4))
"""For tensor cores that read factors from registers: up to Ada, and consumer cards after it. Larger ones spill."""

LARGE_TILES = (Tile(128, 256, 8, 4), Tile(128, 128, 8, 4), Tile(64, 128, 4, 4))
"""For tensor cores that read them from shared memory, of which there is twice as much: Hopper, and Blackwell in data
centres (compute capability 9 and 10)."""


def tiles(device: torch.device, dtype: torch.dtype) -> dict[str, Tile]:
    """What `sparlow bench kernels` chooses from; the first one without a measurement. All give the same sums: integers
    are exact, and FP8 is summed by DEPTH."""
    large = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)
    return {str(tile): tile for tile in (LARGE_TILES if large else SMALL_TILES) if fits(tile, dtype)}


def fits(tile: Tile, dtype: torch.dtype) -> bool:
    """Whether registers are enough: sums of FP8 by DEPTH stand beside those of all columns."""
    return dtype == torch.int8 or tile.cols <= 128


@cache
def tile_for(sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tile:
    """The fastest tile of a product of `sizes`: rows, columns, and what is summed over."""
    known = tiles(device, dtype)
    default = "64x128" if sizes[0] <= 64 else next(iter(known))
    return known[fastest("code_product", device, dtype, sizes, default)]


def launch_product(a: RowCodes, b: RowCodes, y: Tensor, tile: Tile | None = None) -> None:
    """y = a b^T."""
    (rows, cols), width = y.shape, a.codes.shape[1]
    tile = tile or tile_for((rows, cols, width), a.codes.dtype, y.device)
    product_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(cols, tile.cols),)](
        a.codes,
        a.scales,
        b.codes,
        b.scales if b.scales is not None else a.scales,
        y,
        rows,
        cols,
        width,
        y.stride(0),
        SCALED=b.scales is not None,
        EVEN=width % DEPTH == 0,
        ROWS=tile.rows,
        COLS=tile.cols,
        DEPTH=DEPTH,
        SWIZZLE=SWIZZLE,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


GROUP_TILE = Tile(128, 64, 8, 3)
"""Sums of integers and of floats stand beside each other in registers."""


def launch_group_product(a: RowCodes, W: Quantized, y: Tensor) -> None:
    """y = a W^T."""
    (rows, cols), n_groups = y.shape, W.scales.shape[1]
    tile = GROUP_TILE
    depth = min(DEPTH, W.group)
    padded = F.pad(a.codes, (0, n_groups * W.group - a.codes.shape[1]))
    sums = padded.view(rows, n_groups, W.group).sum(2, dtype=torch.int32)
    group_product_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(cols, tile.cols),)](
        a.codes,
        a.scales,
        sums,
        W.codes,
        W.scales,
        W.zeros,
        y,
        rows,
        cols,
        a.codes.shape[1],
        W.codes.shape[1],
        n_groups,
        y.stride(0),
        ROWS=tile.rows,
        COLS=tile.cols,
        DEPTH=depth,
        GROUP=W.group,
        SWIZZLE=SWIZZLE,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=False,
    )
