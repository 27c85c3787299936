"""The definition of Fira's weight update: two products in full size, the residual formed explicitly."""

from typing import Literal

import torch
from torch import Tensor

Side = Literal["left", "right"]

GROWTH = 1.01
"""The residual's norm may grow by this factor from step to step (gamma, equation 8)."""

TINY = 1e-8
"""What guards the divisions by norms."""


def fira_update(
    W: Tensor,
    G: Tensor,
    P: Tensor,
    R: Tensor,
    N: Tensor,
    previous: Tensor,
    lr: float | Tensor,
    scale: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    side: Side = "left",
    decay_after: bool = False,
) -> tuple[Tensor, Tensor]:
    """The new W and the limiter's new state, of matrices in one dtype: see `kernels.fira_update.fira_update_`."""

    def back(low_rank: Tensor) -> Tensor:
        return scale * (P @ low_rank if side == "left" else low_rank @ P)

    dim = 0 if side == "left" else 1
    scaling = N.norm(dim=dim, keepdim=True) / (R.norm(dim=dim, keepdim=True) + TINY)
    residual = (G - back(R)) * scaling
    norm = residual.norm()
    c = limiter(norm, previous)
    update = lr * (back(N) + residual / c)
    decay = 1 - lr * weight_decay
    W = decay * (W - update) if decay_after else decay * W - update
    return W, (norm / c).to(torch.float32)


def limiter(norm: Tensor, previous: Tensor) -> Tensor:
    """What a norm is divided by, so that it is at most GROWTH times the `previous` one (equation 8)."""
    return (norm / (previous + TINY)).clamp(min=GROWTH) / GROWTH
