"""The support of a block-sparse matrix: square blocks at random places, evenly spread.

Every block-row holds k blocks of b x b, and the loads of the block-columns differ by at most one. Then S has full rank
for almost all values (by Hall's theorem each block-row finds a block-column of its own, or each column a row), which
blocks drawn without this care do not give. Blocks fill tensor cores, so products with S need no dense matrix. This is
another method than the element-wise support of SLTrain (arXiv 2406.02214), with coarser freedom.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

BLOCKS = (128, 64, 32, 16)
"""Block sizes to choose from. A tensor core multiplies at least 16 columns."""

DENSITY_TOLERANCE = 0.2
"""Larger blocks are faster; for that the density may be this much off, relatively."""


class BlockIndex(NamedTuple):
    """The blocks in the order in which a product reads them, sorted by the block of outputs that they add to.

    ptr (output blocks + 1,): where each output block's entries begin. For every entry: blocks, its place among the
    values; inputs and outputs, the blocks of inputs and outputs that it connects. All int32.
    """

    ptr: Tensor
    blocks: Tensor
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True, eq=False)
class BlockSupport:
    """Places of the blocks of a matrix of `shape` (out, in), each `block` x `block`.

    columns (block-rows, k) int32: the block-column of each block of each block-row, ascending. The values that go with
    it are (n_blocks, block, block), each block row-major (out, in): block i is the (i % k)-th of block-row i // k. What
    else follows from the columns is made on first use and kept, so they must not change afterwards.
    """

    columns: Tensor
    shape: tuple[int, int]
    block: int
    _derived: dict[str, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    @property
    def k(self) -> int:
        """Blocks in each block-row."""
        return self.columns.shape[1]

    @property
    def n_blocks(self) -> int:
        return self.columns.numel()

    @property
    def grid(self) -> tuple[int, int]:
        """Block-rows and block-columns of the matrix."""
        return self.shape[0] // self.block, self.shape[1] // self.block

    @classmethod
    def draw(cls, shape: tuple[int, int], block: int, k: int, generator: torch.Generator) -> "BlockSupport":
        """k distinct blocks in every block-row, block-columns used equally often up to one; from `generator` (CPU).

        Random permutations of the block-columns, one after another, are cut into rows of k. ValueError when the sides
        are no multiples of `block` or k does not fit.
        """
        if shape[0] % block or shape[1] % block:
            raise ValueError(f"blocks of {block} do not divide both sides of a {shape[0]} x {shape[1]} matrix")
        n_rows, n_columns = shape[0] // block, shape[1] // block
        if not 1 <= k <= n_columns:
            raise ValueError(f"a block-row of a {shape[0]} x {shape[1]} matrix holds 1 to {n_columns} blocks, not {k}")
        permutations = []
        taken = torch.empty(0, dtype=torch.int64)  # by the row that the permutation before left unfinished
        for start in range(0, n_rows * k, n_columns):
            permutation = torch.randperm(n_columns, generator=generator)
            repeats = torch.isin(permutation, taken)
            permutations.append(torch.cat([permutation[~repeats], permutation[repeats]]))
            taken = permutations[-1][n_columns - (start + n_columns) % k :]
        columns = torch.cat(permutations)[: n_rows * k].view(n_rows, k)
        columns = columns[torch.randperm(n_rows, generator=generator)]  # else neighbouring rows never share a column
        return cls(columns.sort(dim=1).values.to(torch.int32), shape, block)

    def check(self) -> None:
        """ValueError unless every block lies in the matrix, in order and once: what the kernels take for granted."""
        n_rows, n_columns = self.grid
        if self.shape != (n_rows * self.block, n_columns * self.block):
            raise ValueError(f"blocks of {self.block} do not divide both sides of a matrix of shape {self.shape}")
        if self.columns.dim() != 2 or self.columns.shape[0] != n_rows or not self.k:
            raise ValueError(
                f"the support's columns are {tuple(self.columns.shape)}, not {n_rows} block-rows of k >= 1"
            )
        if bool((self.columns < 0).any()) or bool((self.columns >= n_columns).any()):
            raise ValueError(f"the support has blocks outside of the {n_columns} block-columns of its matrix")
        if bool((self.columns[:, 1:] <= self.columns[:, :-1]).any()):
            raise ValueError("the support's columns must ascend without repetition in every block-row")

    def index(self, transposed: bool = False) -> BlockIndex:
        """How x S^T reads the blocks: by block-row; `transposed`, how y S reads them: by block-column."""
        name = "transposed index" if transposed else "index"
        if name not in self._derived:
            self._derived[name] = self._sort(transposed)
        return BlockIndex(*self._derived[name])

    def padded(self, transposed: bool = False) -> tuple[Tensor, Tensor]:
        """The blocks as two matrices (output blocks, most entries of one): places among the values, and input blocks.

        The place n_blocks fills up; the input block beside it repeats one that is there.
        """
        name = "transposed padded" if transposed else "padded"
        if name not in self._derived:
            index = self.index(transposed)
            start, end = index.ptr[:-1, None], index.ptr[1:, None]
            entry = start + torch.arange(int((end - start).max()), device=start.device)
            known = torch.minimum(entry, end - 1).clamp_min(0)
            blocks = torch.where(entry < end, index.blocks[known], self.n_blocks)
            self._derived[name] = (blocks, index.inputs[known])
        return self._derived[name]  # type: ignore[return-value]

    def _sort(self, transposed: bool) -> tuple[Tensor, ...]:
        device = self.columns.device
        blocks = torch.arange(self.n_blocks, dtype=torch.int32, device=device)
        rows, columns = blocks // self.k, self.columns.flatten()
        if not transposed:
            ptr = torch.arange(self.grid[0] + 1, dtype=torch.int32, device=device) * self.k
            return ptr, blocks, columns, rows
        order = torch.argsort(columns, stable=True)
        outputs = columns[order]
        bounds = torch.arange(self.grid[1] + 1, dtype=torch.int32, device=device)
        ptr = torch.searchsorted(outputs, bounds, out_int32=True)
        return ptr, blocks[order], rows[order], outputs


def choose_block(shape: tuple[int, int], density: float) -> tuple[int, int]:
    """(b, k): a block size that fits `shape` (out, in) and `density`, and the blocks in each block-row.

    k is density * in / b, rounded to at least one; the density that results is k * b / in. Of the sizes that reach
    every block-column, or of all where none does, the largest whose density is within a fifth of the one asked for, or
    the nearest. ValueError when no block divides both sides, when one of the smallest is more than half too many, or
    when the density is not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it must be above 0 and at most 1")
    dividing = [b for b in BLOCKS if shape[0] % b == 0 and shape[1] % b == 0]
    if not dividing:
        side = next(side for side in shape if side % BLOCKS[-1])
        raise ValueError(
            f"no block size of {', '.join(map(str, BLOCKS))} divides both sides of a {shape[0]} x {shape[1]} matrix; "
            f"use a multiple of 64, e.g. {-(-side // 64) * 64} for {side}"
        )
    smallest = dividing[-1]
    if not round(density * shape[1] / smallest):
        raise ValueError(
            f"density {density} leaves no {smallest} x {smallest} block in a block-row of a {shape[0]} x {shape[1]} "
            f"matrix; raise it towards {smallest / shape[1]:.4g}, which is one"
        )
    fitting = [(b, k) for b in dividing if (k := round(density * shape[1] / b))]
    # An input that no block reads is left to the low-rank part alone.
    fitting = [(b, k) for b, k in fitting if shape[0] // b * k >= shape[1] // b] or fitting
    error = {b: abs(k * b / shape[1] / density - 1) for b, k in fitting}
    tolerated = max(DENSITY_TOLERANCE, min(error.values()))
    return next((b, k) for b, k in fitting if error[b] <= tolerated)
