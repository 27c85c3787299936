"""What a gradient's signs may do to an update: drop entries of it (cautious), or turn them round (grams)."""

import torch
from torch import Tensor

from pretrain.optim.config import OwnConfig


def signed(config: OwnConfig, N: Tensor, gradient: Tensor) -> Tensor:
    """N as `cautious` or `grams` of `config` has it; N itself without either.

    Both are in N's coordinates: for a projected N the signs are those of R, and no product of whole matrices is needed.
    """
    if config.cautious:
        return cautious(N, gradient)
    return grams(N, gradient) if config.grams else N


def cautious(N: Tensor, gradient: Tensor) -> Tensor:
    """N where its sign is the gradient's, else 0, times the share that stays (at least 1e-3) to the power -1.

    Of Cautious Optimizers (arXiv 2411.16085, algorithm 2, as released).
    """
    mask = (N * gradient > 0).to(N.dtype)
    return N * (mask / mask.mean().clamp(min=1e-3))


def grams(N: Tensor, gradient: Tensor) -> Tensor:
    """|N| with the gradient's signs: momentum says how far, the gradient alone which way (Grams, arXiv 2412.17107)."""
    return torch.sign(gradient).to(N.dtype) * N.abs()
