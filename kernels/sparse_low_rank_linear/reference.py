"""The definition of the sparse-plus-low-rank linear (arXiv 2406.02214, section 3), differentiable by autograd."""

from torch import Tensor


def sparse_low_rank_weight(A: Tensor, B: Tensor, values: Tensor, indices: Tensor, scale: float) -> Tensor:
    """The dense W (out, in) = scale B A, plus `values` at the flat row-major positions `indices`.

    A (rank, in), B (out, rank), values (nnz,), indices (nnz,) int32 without repetition.
    """
    low_rank = scale * (B @ A)
    return low_rank.flatten().index_add(0, indices, values).view_as(low_rank)


def sparse_low_rank_linear(
    x: Tensor, A: Tensor, B: Tensor, values: Tensor, indices: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """y (..., out) = x W^T + bias for x (..., in), computed in the dtype of x."""
    weight = sparse_low_rank_weight(A.to(x.dtype), B.to(x.dtype), values.to(x.dtype), indices, scale)
    y = x @ weight.t()
    return y if bias is None else y + bias.to(x.dtype)
