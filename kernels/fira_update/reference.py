"""The definition of Fira's weight update: two products in full size, the residual formed explicitly."""

from typing import Literal

import torch
from torch import Tensor

Side = Literal["left", "right"]

GROWTH = 1.01
"""The residual's norm may grow by this factor from step to step (gamma, equation 8)."""


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
    scaling = N.norm(dim=dim, keepdim=True) / (R.norm(dim=dim, keepdim=True) + 1e-8)
    residual = (G - back(R)) * scaling
    norm = residual.norm()
    limiter = (norm / (previous + 1e-8)).clamp(min=GROWTH) / GROWTH
    update = lr * (back(N) + residual / limiter)
    decay = 1 - lr * weight_decay
    W = decay * (W - update) if decay_after else decay * W - update
    return W, (norm / limiter).to(torch.float32)
