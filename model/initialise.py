"""Initial values: drawn on the CPU in fp32 from (seed, name), then copied, so that every device starts equal."""

import torch
from torch import Tensor

from model.seeding import generator


@torch.no_grad()
def fill_normal(parameter: Tensor, std: float, seed: int, name: str) -> None:
    """N(0, std^2) from (seed, name)."""
    parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator(seed, "init", name)))


@torch.no_grad()
def fill_uniform(parameter: Tensor, bound: float, seed: int, name: str) -> None:
    """U(-bound, bound) from (seed, name)."""
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator(seed, "init", name)))
