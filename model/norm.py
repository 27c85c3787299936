"""RMSNorm (arXiv 1910.07467)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; the mean square is taken in fp32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if torch.is_grad_enabled() and not x.is_cuda:
            return normalize(x, weight, self.eps)
        # One fused kernel on a GPU, which needs both in one dtype.
        return F.rms_norm(x, weight.shape, weight, self.eps)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        self.weight.fill_(1.0)


def normalize(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`F.rms_norm` of x (..., D) with weight (D,), up to rounding; differentiable once.

    For training on a CPU, where PyTorch takes its own apart into some twenty passes over memory; these are a dozen.
    """
    return _Normalize.apply(x, weight, eps)


class _Normalize(torch.autograd.Function):
    """y = r x w with r = 1 / sqrt(mean(x^2) + eps), all but the result in fp32 or wider.

    With h = grad_y w the gradients are grad_x = r h - r^3 mean(h x) x and grad_w = sum over rows of r grad_y x: the one
    product r grad_y x serves both, and the mean is a matrix-vector product with it.
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = _wide(x)  # [N, D]
        r = torch.linalg.vector_norm(wide, dim=1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # [N, 1]
        ctx.save_for_backward(x, weight, r)
        return (wide * r).mul_(weight.to(wide.dtype)).to(x.dtype).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, weight, r = ctx.saved_tensors
        need_x, need_weight, _ = ctx.needs_input_grad
        grad_x = grad_weight = None
        wide, g = _wide(x), _wide(grad_y)  # [N, D]
        w = weight.to(wide.dtype)
        product = (g * wide).mul_(r)
        if need_weight:
            grad_weight = product.sum(0).to(weight.dtype)
        if need_x:
            pull = torch.mv(product, w).unsqueeze(1).mul_(r.square()).div_(-x.shape[-1])  # [N, 1]
            grad_x = torch.mul(g, w, out=product).mul_(r).addcmul_(wide, pull).to(x.dtype).view_as(x)
        return grad_x, grad_weight, None


def _wide(x: Tensor) -> Tensor:
    """Rows of x in fp32, or in fp64 where x is."""
    return x.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
