"""The sparse-plus-low-rank linear as the model calls it: the dense W exists only while a matmul reads it.

Autograd through the definition would keep W of every layer from the forward to the backward pass, the memory of the
dense model. Here W is rebuilt in the backward pass, as in the paper (arXiv 2406.02214, equation 3). With N tokens the
cost is 6 N out in + 8 out in rank FLOPs, forward and backward; at most one dense matrix of the layer is alive.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def sparse_low_rank_linear(
    x: Tensor, A: Tensor, B: Tensor, values: Tensor, indices: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """y (..., out) = x W^T + bias with W = scale B A, plus `values` at the flat row-major positions `indices`.

    x (..., in), A (rank, in), B (out, rank), values (nnz,), indices (nnz,) int32 without repetition, bias (out,).
    Everything is computed in the dtype of x; each gradient has the dtype of its tensor. Differentiable once.
    """
    return _SparseLowRankLinear.apply(x, A, B, values, indices, scale, bias)


class _SparseLowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, B, values, indices, scale, bias):
        # The parameters themselves are saved, not casts of them: they are alive anyway, a cast would be a copy.
        ctx.save_for_backward(x, A, B, values, indices)
        ctx.scale = scale
        ctx.bias_dtype = None if bias is None else bias.dtype
        weight = _rebuild(A.to(x.dtype), B.to(x.dtype), values.to(x.dtype), indices, scale)
        flat = x.reshape(-1, A.shape[1])  # [N, I]
        y = flat @ weight.t() if bias is None else torch.addmm(bias.to(x.dtype), flat, weight.t())
        return y.view(*x.shape[:-1], B.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, A, B, values, indices = ctx.saved_tensors
        need_x, need_A, need_B, need_values, _, _, need_bias = ctx.needs_input_grad
        grad_x = grad_A = grad_B = grad_values = grad_bias = None
        g = grad_y.reshape(-1, B.shape[0])  # [N, O]
        flat = x.reshape(-1, A.shape[1])  # [N, I]
        A_, B_ = A.to(x.dtype), B.to(x.dtype)
        dense = torch.empty(B.shape[0], A.shape[1], dtype=x.dtype, device=x.device)  # W, then its gradient
        if need_x:
            _rebuild(A_, B_, values.to(x.dtype), indices, ctx.scale, out=dense)
            grad_x = (g @ dense).view_as(x)
        if need_A or need_B or need_values:
            torch.mm(g.t(), flat, out=dense)
        if need_A:
            grad_A = _scaled_mm(B_.t(), dense, ctx.scale).to(A.dtype)
        if need_B:
            grad_B = _scaled_mm(dense, A_.t(), ctx.scale).to(B.dtype)
        if need_values:
            grad_values = dense.view(-1).index_select(0, indices).to(values.dtype)
        if need_bias:
            grad_bias = g.sum(0).to(ctx.bias_dtype)
        return grad_x, grad_A, grad_B, grad_values, None, None, grad_bias


def _rebuild(A: Tensor, B: Tensor, values: Tensor, indices: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """W (out, in), written to `out` when given."""
    weight = _scaled_mm(B, A, scale, out)
    weight.view(-1).index_add_(0, indices, values)
    return weight


def _scaled_mm(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * left @ right in one kernel; beta = 0 ignores what is in the output's memory, NaN included."""
    if out is None:
        out = torch.empty(left.shape[0], right.shape[1], dtype=left.dtype, device=left.device)
    return out.addmm_(left, right, beta=0, alpha=scale)
