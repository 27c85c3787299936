"""The block-sparse-plus-low-rank linear: y = x W^T with W = scale B A + S, where S consists of balanced random blocks.

It is not SLTrain, whose S is sparse element by element: here the products are factored, forward and backward, and W
never exists, nor does its gradient. With N tokens it costs 6 N (rank (out + in) + k b out) FLOPs, and keeps x and
x A^T (N, rank) from the forward to the backward pass.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import on_its_device, uses_triton
from kernels.block_low_rank_linear import in_torch
from kernels.block_support import BlockSupport
from kernels.products import scaled_mm


def block_low_rank_linear(
    x: Tensor, A: Tensor, B: Tensor, values: Tensor, support: BlockSupport, scale: float
) -> Tensor:
    """y (..., out) = x W^T with W = scale B A + S, S holding the blocks `values` (n_blocks, b, b) at `support`.

    x (..., in), A (rank, in), B (out, rank). Everything is computed in the dtype of x; each gradient has the dtype of
    its tensor. Differentiable once. ValueError when the shapes do not belong together.
    """
    shapes = tuple(x.shape[-1:]), tuple(A.shape), tuple(B.shape), tuple(values.shape)
    (n_out, n_in), rank, b = support.shape, A.shape[0], support.block
    if shapes != ((n_in,), (rank, n_in), (n_out, rank), (support.n_blocks, b, b)):
        raise ValueError(
            f"x {tuple(x.shape)}, A {shapes[1]}, B {shapes[2]} and values {shapes[3]} do not fit a support of "
            f"{support.n_blocks} blocks of {b} in a {n_out} x {n_in} matrix"
        )
    return _BlockLowRankLinear.apply(x, A, B, values, support, scale)


class _BlockLowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, B, values, support, scale):
        flat = _rows(x, A.shape[1])  # [N, I]
        z = flat @ A.to(x.dtype).t()  # [N, R]
        # The parameters themselves are saved, not casts of them: they are alive anyway, a cast would be a copy.
        ctx.save_for_backward(x, z, A, B, values)
        ctx.support, ctx.scale = support, scale
        y = _combine(flat, z, B.to(x.dtype), values.to(x.dtype), support, scale, transposed=False)
        return y.view(*x.shape[:-1], B.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, z, A, B, values = ctx.saved_tensors
        support, scale = ctx.support, ctx.scale
        need_x, need_A, need_B, need_values, _, _ = ctx.needs_input_grad
        grad_x = grad_A = grad_B = grad_values = None
        g, flat = _rows(grad_y, B.shape[0]), _rows(x, A.shape[1])  # [N, O], [N, I]
        if need_x or need_A:
            u = g @ B.to(x.dtype)  # [N, R]
        if need_x:
            factor = A.to(x.dtype).t()
            grad_x = _combine(g, u, factor, values.to(x.dtype), support, scale, transposed=True).view_as(x)
        if need_A:
            grad_A = scaled_mm(u.t(), flat, scale).to(A.dtype)
        if need_B:
            grad_B = scaled_mm(g.t(), z, scale).to(B.dtype)
        if need_values:
            grad_values = _gradient(g, flat, support, values.dtype)
        return grad_x, grad_A, grad_B, grad_values, None, None


def _rows(x: Tensor, width: int) -> Tensor:
    """x (..., width) as (N, width) with rows of stride 1; the gradient of a sum, for one, has stride 0."""
    flat = x.reshape(-1, width)
    return flat if flat.stride(1) == 1 else flat.contiguous()


@on_its_device
def _combine(
    x: Tensor, z: Tensor, factor: Tensor, values: Tensor, support: BlockSupport, scale: float, transposed: bool
) -> Tensor:
    """scale z factor^T + x S^T, S for S^T when `transposed`."""
    if not uses_triton(x):
        return in_torch.combine(x, z, factor, values, support, scale, transposed)
    from kernels.block_low_rank_linear.in_triton import launch_block_low_rank

    y = torch.empty(x.shape[0], factor.shape[0], dtype=x.dtype, device=x.device)
    launch_block_low_rank(x, z, factor, values.contiguous(), support, scale, transposed, y)
    return y


@on_its_device
def _gradient(g: Tensor, x: Tensor, support: BlockSupport, dtype: torch.dtype) -> Tensor:
    """The blocks (n_blocks, b, b) of g^T x at the support, as `dtype`."""
    if not uses_triton(x):
        return in_torch.gradient(g, x, support).to(dtype)
    from kernels.block_low_rank_linear.in_triton import launch_block_gradient

    out = torch.empty(support.n_blocks, support.block, support.block, dtype=dtype, device=x.device)
    launch_block_gradient(g, x, support, out)
    return out
