"""Momentum of a whole matrix, kept in fp32, bf16 or 8 bits."""

import torch
from torch import Tensor

from kernels.adam8bit.reference import dequantise, quantise
from kernels.adam8bit.state import BLOCK
from pretrain.optim.element import State

NAME, SCALES = "momentum_buffer", "momentum_buffer_absmax"

PART = 4096 * BLOCK
"""Elements that change their codes at once: looking codes up takes several times the memory of what it is for."""


def init_momentum(moments: str, shape: tuple[int, int], device: torch.device) -> State:
    """Zero momentum as `moments` (optimizer.moments) says: "8bit" in codes that blocks of 256 elements share a scale
    for, as `kernels.adam8bit` has them."""
    if moments == "8bit":
        numel = shape[0] * shape[1]
        codes, scales = quantise(torch.zeros(BLOCK, device=device), signed=True)
        return {
            NAME: codes[:1].expand(numel).reshape(shape).contiguous(),
            SCALES: scales.expand(-(-numel // BLOCK)).contiguous(),
        }
    return {NAME: torch.zeros(shape, dtype=torch.bfloat16 if moments == "bf16" else torch.float32, device=device)}


def advance_momentum(state: State, gradient: Tensor, beta: float) -> Tensor:
    """B <- beta B + (1 - beta) gradient, in place; the new B (fp32) before it is rounded, not to be written to.

    In bf16 it is rounded to nearest: with a beta of 0.95 and less it changes by more than its last place.
    """
    kept = state[NAME]
    if kept.dtype == torch.float32:
        return kept.lerp_(gradient.float(), 1 - beta)
    if kept.dtype == torch.bfloat16:
        new = kept.float().lerp_(gradient.float(), 1 - beta)
        kept.copy_(new)
        return new
    codes, scales, G = kept.view(-1), state[SCALES], gradient.reshape(-1)
    B = torch.empty(kept.shape, device=kept.device)
    for start in range(0, codes.numel(), PART):
        part, blocks = slice(start, start + PART), slice(start // BLOCK, (start + PART) // BLOCK)
        new = dequantise(codes[part], scales[blocks], signed=True).lerp_(G[part].float(), 1 - beta)
        codes[part], scales[blocks] = quantise(new, signed=True)
        B.view(-1)[part] = new
    return B
