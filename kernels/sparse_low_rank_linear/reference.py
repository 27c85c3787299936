"""The definition of the sparse-plus-low-rank linear (arXiv 2406.02214, section 3), differentiable by autograd."""

from torch import Tensor

from kernels.decompress.reference import decompress


def sparse_low_rank_linear(
    x: Tensor, A: Tensor, B: Tensor, values: Tensor, positions: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """y (..., out) = x W^T + bias for x (..., in), computed in the dtype of x; W as in kernels/decompress/reference."""
    weight = decompress(A.to(x.dtype), B.to(x.dtype), values.to(x.dtype), positions, scale)
    y = x @ weight.t()
    return y if bias is None else y + bias.to(x.dtype)
