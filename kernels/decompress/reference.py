"""The definitions of decompression, differentiable by autograd, and of the gather."""

from torch import Tensor


def decompress(A: Tensor, B: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
    """W (out, in) = scale B A, plus `values` (nnz,) at the flat row-major `positions` (nnz,), which do not repeat.

    A (rank, in), B (out, rank), in one dtype.
    """
    low_rank = scale * (B @ A)
    return low_rank.flatten().index_add(0, positions, values).view_as(low_rank)


def tile_gather(dense: Tensor, positions: Tensor) -> Tensor:
    """The entries (nnz,) of `dense` (out, in) at the flat row-major `positions` (nnz,)."""
    return dense.flatten().index_select(0, positions)
