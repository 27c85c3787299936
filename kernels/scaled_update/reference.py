"""The definitions of the scaled update and of the limiter."""

import torch
from torch import Tensor

from kernels.fira_update.reference import TINY, limiter


def limit_growth(state: Tensor, G: Tensor, scaling: Tensor) -> tuple[Tensor, Tensor]:
    """(scaling / limiter, the limiter's new state): see `kernels.scaled_update.limit_growth_`."""
    if scaling.numel() == 1:
        norm = torch.linalg.vector_norm(G) * scaling.reshape(()).abs()
    else:  # by channel, without a matrix G * scaling
        by_channel = G.square().sum(0 if scaling.shape[0] == 1 else 1)
        norm = torch.dot(by_channel, scaling.flatten().square()).sqrt()
    c = limiter(norm, state)
    return scaling / c, torch.where(norm > TINY, norm / c, state)


def scaled_update(
    W: Tensor, G: Tensor, scaling: Tensor, lr: float | Tensor, weight_decay: float | Tensor, decay_after: bool
) -> Tensor:
    """(1 - lr weight_decay) W - lr scaling G; with `decay_after`, (1 - lr weight_decay) (W - lr scaling G)."""
    decay = 1 - lr * weight_decay
    update = lr * scaling * G
    return decay * (W - update) if decay_after else decay * W - update
