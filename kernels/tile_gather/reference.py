"""The definition of the gather."""

from torch import Tensor


def tile_gather(dense: Tensor, positions: Tensor) -> Tensor:
    """The entries (nnz,) of `dense` (out, in) at the flat row-major `positions` (nnz,)."""
    return dense.flatten().index_select(0, positions)
