"""The support of an element-sparse matrix, stored tile by tile.

Sorted by tile, then row-major within the tile, an entry needs 16 bits (its place in the tile), and one program owns all
entries of its tile: kernels scatter without atomics, and equal inputs give equal bits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels.arguments import LARGEST_OFFSET

TILE = (128, 128)
"""Rows and columns of a tile; at most 2^16 places. Part of the checkpoint's format: values are stored in this order."""

ROW_ALIGNMENT = 64
"""Elements. Rows of an odd width (5461 in the 1B model) would start where neither cuBLAS nor a kernel loads fast."""


@dataclass(frozen=True)
class TileSupport:
    """Positions of the sparse entries of a matrix of `shape` (out, in), in tile order.

    loc (nnz,) uint16: row * tile columns + column, within the tile. tile_ptr (tiles + 1,) int32: where each tile's
    entries begin, tiles in row-major order.
    """

    loc: Tensor
    tile_ptr: Tensor
    shape: tuple[int, int]
    tile: tuple[int, int] = TILE
    _derived: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_size(self.shape)

    @property
    def nnz(self) -> int:
        return self.loc.numel()

    @classmethod
    def from_flat(cls, indices: Tensor, shape: tuple[int, int], tile: tuple[int, int] = TILE) -> "TileSupport":
        """Make one of flat row-major positions (nnz,) in ascending order; ValueError when they are no such thing."""
        if indices.numel() and (int(indices[0]) < 0 or int(indices[-1]) >= shape[0] * shape[1]):
            raise ValueError(f"the support has positions outside of a {shape[0]} x {shape[1]} matrix")
        if bool((indices[1:] <= indices[:-1]).any()):
            raise ValueError("the support must be sorted in ascending order without repetition")
        order, tiles, loc = _tile_order(indices, shape, tile)
        counts = torch.bincount(tiles, minlength=count_tiles(shape, tile))
        tile_ptr = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=indices.device)
        tile_ptr[1:] = counts.cumsum(0)
        return cls(loc[order].to(torch.uint16), tile_ptr, shape, tile)

    def check(self) -> None:
        """ValueError unless every entry lies in the matrix, in order and once: what the kernels take for granted."""
        if self.tile_ptr.numel() != count_tiles(self.shape, self.tile) + 1:
            raise ValueError(f"the support has {self.tile_ptr.numel() - 1} tiles, not those of {self.shape}")
        starts = self.tile_ptr.long()
        if int(starts[0]) or int(starts[-1]) != self.nnz or bool((starts[1:] < starts[:-1]).any()):
            raise ValueError("the support's tile_ptr does not divide its entries into tiles")
        tiles = _tile_of_entry(starts, self.nnz)
        loc = self.loc.to(torch.int64)
        key = tiles * (self.tile[0] * self.tile[1]) + loc
        if bool((key[1:] <= key[:-1]).any()) or bool((loc >= self.tile[0] * self.tile[1]).any()):
            raise ValueError("the support is not sorted within its tiles, or repeats an entry")
        rows, columns = _coordinates(tiles, loc, self.shape, self.tile)
        if bool((rows >= self.shape[0]).any()) or bool((columns >= self.shape[1]).any()):
            raise ValueError(f"the support has positions outside of a {self.shape[0]} x {self.shape[1]} matrix")

    def check_factors(self, A: Tensor, B: Tensor, values: Tensor) -> None:
        """ValueError unless A (rank, in), B (out, rank) and values (nnz,) fit: kernels read and write what it says."""
        shapes = tuple(A.shape), tuple(B.shape), tuple(values.shape)
        (n_out, n_in), rank = self.shape, A.shape[0]
        if shapes != ((rank, n_in), (n_out, rank), (self.nnz,)):
            raise ValueError(
                f"A {shapes[0]}, B {shapes[1]} and values {shapes[2]} do not fit a support of {self.nnz} entries in a "
                f"{n_out} x {n_in} matrix"
            )

    def flat(self) -> Tensor:
        """Flat row-major positions (nnz,) int32 of the entries, in tile order."""
        return self.derived("flat", self._flat)

    def derived(self, name: str, make: Callable[[], Any]) -> Any:
        """Make what follows from the support alone, on first use, and keep it."""
        if name not in self._derived:
            self._derived[name] = make()
        return self._derived[name]

    def _flat(self) -> Tensor:
        tiles = _tile_of_entry(self.tile_ptr.long(), self.nnz)
        rows, columns = _coordinates(tiles, self.loc.to(torch.int64), self.shape, self.tile)
        return (rows * self.shape[1] + columns).to(torch.int32)


def padded_width(n_in: int) -> int:
    """Elements from one row of W to the next where Triton runs."""
    return -(-n_in // ROW_ALIGNMENT) * ROW_ALIGNMENT


def check_size(shape: tuple[int, int]) -> None:
    """ValueError for a matrix (out, in) that kernels cannot address."""
    if shape[0] * padded_width(shape[1]) >= LARGEST_OFFSET:
        raise ValueError(
            f"a {shape[0]} x {shape[1]} matrix, its rows padded to multiples of {ROW_ALIGNMENT}, has 2^31 elements or "
            "more, too many for a support"
        )


def count_tiles(shape: tuple[int, int], tile: tuple[int, int] = TILE) -> int:
    return -(-shape[0] // tile[0]) * -(-shape[1] // tile[1])


def _tile_order(indices: Tensor, shape: tuple[int, int], tile: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The permutation into tile order, and tile and place of each entry in the order given."""
    rows, columns = indices.long() // shape[1], indices.long() % shape[1]
    tiles = rows // tile[0] * -(-shape[1] // tile[1]) + columns // tile[1]
    loc = rows % tile[0] * tile[1] + columns % tile[1]
    return torch.argsort(tiles * (tile[0] * tile[1]) + loc), tiles, loc


def _tile_of_entry(starts: Tensor, nnz: int) -> Tensor:
    counts = starts[1:] - starts[:-1]
    return torch.repeat_interleave(torch.arange(counts.numel(), device=starts.device), counts, output_size=nnz)


def _coordinates(tiles: Tensor, loc: Tensor, shape: tuple[int, int], tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    across = -(-shape[1] // tile[1])
    return tiles // across * tile[0] + loc // tile[1], tiles % across * tile[1] + loc % tile[1]
