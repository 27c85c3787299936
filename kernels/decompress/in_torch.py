"""Decompression and the gather in plain PyTorch."""

from torch import Tensor

from kernels.decompress import reference
from kernels.support import TileSupport


def decompress(A: Tensor, B: Tensor, values: Tensor, support: TileSupport, scale: float, W: Tensor) -> None:
    """W (out, in) = scale B A + S in W's own memory, whatever is in it."""
    W.addmm_(B, A, beta=0, alpha=scale)  # beta 0 ignores what is in W's memory, NaN included
    W.view(-1).index_add_(0, support.flat(), values)


def tile_gather(dense: Tensor, support: TileSupport) -> Tensor:
    """The entries (nnz,) of `dense` (out, in) in tile order."""
    return reference.tile_gather(dense, support.flat())
