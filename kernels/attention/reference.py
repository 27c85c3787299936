"""The definition of causal attention, differentiable by autograd."""

import math

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) v over each position's own and earlier keys; the softmax in fp32 or wider.

    q [B, H, T, E]; k and v [B, K, T, E], each head of which serves H / K query heads in a row. Returns [B, H, T, E].
    """
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(2, 3)) / math.sqrt(q.shape[3])
    later = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)).masked_fill(later, -math.inf)
    return scores.softmax(-1).to(q.dtype) @ v
