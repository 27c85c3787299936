"""The published algorithm of the SLTrain linear, as a peer to measure against (arXiv 2406.02214, section 3.3).

Written from the description: the scale is applied to A outside of the autograd function, positions are int64, W is
built by a matmul and a scatter-add and again in the backward pass, the values' gradient is gathered from a dense one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NAME = "paper's algorithm"


def decompress(A: Tensor, B: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """W (out, in) = B A with `values` (nnz,) added at the flat positions `index` (nnz,) int64."""
    W = B @ A
    W.view(-1).scatter_add_(0, index, values)
    return W


def gather(dense: Tensor, index: Tensor) -> Tensor:
    """The entries (nnz,) of `dense` (out, in) at the flat positions `index` (nnz,) int64."""
    return dense.view(-1).gather(0, index)


def linear(x: Tensor, A: Tensor, B: Tensor, values: Tensor, index: Tensor, scale: float) -> Tensor:
    """y (tokens, out) of x (tokens, in), all in one dtype."""
    return _Linear.apply(x, A * scale, B, values, index)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, B, values, index):
        ctx.save_for_backward(x, A, B, values, index)
        return F.linear(x, decompress(A, B, values, index))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, A, B, values, index = ctx.saved_tensors
        grad_x = grad_y @ decompress(A, B, values, index)
        dense = grad_y.t() @ x  # [O, I]
        return grad_x, B.t() @ dense, dense @ A.t(), gather(dense, index), None
