"""Random numbers that depend on (seed, names) only: never on process count, device or call order."""

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from the run's seed and any names, e.g. `derive_seed(0, "init", "layers.0.attention.q_proj.A")`."""
    text = "\0".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`: the same numbers on every rank and every device."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
