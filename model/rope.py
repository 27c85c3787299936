"""Rotary position encoding (arXiv 2104.09864) in the half-split layout of Hugging Face LLaMA weights."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import kernels.liger as liger


def rotary_tables(seq_len: int, head_dim: int, theta: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """cos and sin [2, T, E/2] of position * theta^(-2i/head_dim), computed in fp32 (fp64 for fp64) and cast.

    No buffer of a model: its cast would round a buffer, and sharding would have to skip it.
    """
    with torch.inference_mode(False), torch.no_grad():
        wide = torch.promote_types(dtype, torch.float32)
        frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=wide, device=device) / head_dim)
        angles = torch.outer(torch.arange(seq_len, dtype=wide, device=device), frequencies)
        return torch.stack([angles.cos(), angles.sin()]).to(dtype)


def rotate(q: Tensor, k: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """`apply_rope` of q [B, T, H, E] and k [B, T, K, E], whose memory it may reuse."""
    return liger.rope(q, k, tables) if liger.available(q) else (apply_rope(q, tables), apply_rope(k, tables))


def apply_rope(x: Tensor, tables: Tensor) -> Tensor:
    """x [B, T, H, E] with each pair (x[i], x[i + E/2]) turned by its position's angle; tables [2, T, E/2].

    Differentiable once.
    """
    return _Rotate.apply(x, tables)


class _Rotate(torch.autograd.Function):
    """A rotation saves nothing: its gradient is the inverse rotation."""

    @staticmethod
    def forward(ctx, x, tables):
        ctx.save_for_backward(tables)
        return _rotate(x, tables, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (tables,) = ctx.saved_tensors
        return _rotate(grad, tables, -1), None


def _rotate(x: Tensor, tables: Tensor, direction: int) -> Tensor:
    cos, sin = tables.unsqueeze(2)  # [T, 1, E/2]
    first, second = x.unflatten(-1, (2, -1)).unbind(-2)
    turned = x.unflatten(-1, (2, -1)) * cos.unsqueeze(-2)  # [B, T, H, 2, E/2]
    turned[..., 0, :].addcmul_(second, sin, value=-direction)
    turned[..., 1, :].addcmul_(first, sin, value=direction)
    return turned.flatten(-2)
