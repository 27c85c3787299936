"""The definition of decompression, differentiable by autograd."""

from torch import Tensor


def decompress(A: Tensor, B: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
    """W (out, in) = scale B A, plus `values` (nnz,) at the flat row-major `positions` (nnz,), which do not repeat.

    A (rank, in), B (out, rank), in one dtype.
    """
    low_rank = scale * (B @ A)
    return low_rank.flatten().index_add(0, positions, values).view_as(low_rank)
