"""The definition of the sparse-plus-low-rank linear (arXiv 2406.02214, section 3), differentiable by autograd."""

from torch import Tensor

from kernels.decompress.reference import decompress


def sparse_low_rank_linear(x: Tensor, A: Tensor, B: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
    """y (..., out) = x W^T for x (..., in), computed in the dtype of x; W as in kernels/decompress/reference."""
    return x @ decompress(A.to(x.dtype), B.to(x.dtype), values.to(x.dtype), positions, scale).t()
