"""Rotary position encoding (arXiv 2104.09864) in the half-split layout of Hugging Face LLaMA weights."""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

import kernels.liger as liger
from model.config import ModelConfig


def rotary_tables(config: ModelConfig, seq_len: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """cos and sin [2, T, E/2] of position * frequency, computed in fp32 (fp64 for fp64) and cast.

    No buffer of a model: its cast would round a buffer, and sharding would have to skip it.
    """
    with torch.inference_mode(False), torch.no_grad():
        wide = torch.promote_types(dtype, torch.float32)
        width = config.head_width
        frequencies = config.rope_theta ** -(torch.arange(0, width, 2, dtype=wide, device=device) / width)
        if config.rope_scaling == "llama3":
            frequencies = _llama3(frequencies, config)
        angles = torch.outer(torch.arange(seq_len, dtype=wide, device=device), frequencies)
        return torch.stack([angles.cos(), angles.sin()]).to(dtype)


def _llama3(frequencies: Tensor, config: ModelConfig) -> Tensor:
    """frequencies [E/2], in radians per token, as Llama 3.1 lowers them for sequences longer than it was trained on.

    By how often each turns over the original length: seldom, it is divided by the factor; often, kept; mixed in
    between, linearly in the number of turns. (Hugging Face calls this rope_type llama3.)
    """
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    turns = config.rope_original_len * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / config.rope_factor + kept * frequencies


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
