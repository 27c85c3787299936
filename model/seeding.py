"""Random numbers that depend on (seed, names) only, never on process count, device or call order; initial values.

These are drawn on the CPU in fp32 and then copied, so that every device starts equal.
"""

import hashlib

import torch
from torch import Tensor


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from the run's seed and any names, e.g. `derive_seed(0, "init", "layers.0.attention.q_proj.A")`."""
    text = "\0".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`: the same numbers on every rank and every device."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


@torch.no_grad()
def fill_normal(parameter: Tensor, std: float, seed: int, name: str) -> None:
    """N(0, std^2) from (seed, name)."""
    parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator(seed, "init", name)))


@torch.no_grad()
def fill_uniform(parameter: Tensor, bound: float, seed: int, name: str) -> None:
    """U(-bound, bound) from (seed, name)."""
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator(seed, "init", name)))
