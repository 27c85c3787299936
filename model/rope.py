"""Rotary position encoding (arXiv 2104.09864) in the half-split layout of Hugging Face LLaMA weights."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

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
    """A rotation saves nothing but its tables: its gradient is the inverse rotation."""

    @staticmethod
    def forward(ctx, x, tables):
        cos, sin = _spread(tables, x.shape[2])
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1), None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """cos and sin [T, H, E] as `_spread` makes them: every pass is over whole rows, not over half a head at a time."""
    x = x.contiguous()
    first, second = x.chunk(2, dim=-1)
    return (x * cos).addcmul_(torch.cat([second, first], dim=-1), sin, value=direction)


def _spread(tables: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin) [T, H, E], repeated for every head; made once, as every layer uses the same."""
    spread = _spread_tables.setdefault(tables, {})
    if heads not in spread:
        with torch.inference_mode(False), torch.no_grad():
            cos, sin = tables.unsqueeze(2)  # [T, 1, E/2]
            halves = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
            spread[heads] = tuple(half.repeat(1, heads, 1) for half in halves)
    return spread[heads]


_spread_tables = WeakTensorKeyDictionary()
"""By the identity of narrow tables, for as long as those live."""
