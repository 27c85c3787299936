"""One comparison: this code against peers that do the same work on the same tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """`ours` and each of `peers` (name -> function) do the same work once per call."""

    name: str
    """Operation, and variant where it has several."""
    shape: str
    """E.g. "1376x512 rank 128 density 0.03, 1024 tokens"."""
    dtype: torch.dtype
    ours: Callable[[], object]
    peers: Mapping[str, Callable[[], object]]
    floor_bytes: int = 0
    """Bytes that any implementation must read and write: bounds what is possible. 0 where arithmetic is the bound."""


@dataclass(frozen=True)
class Alternatives:
    """One choice of `kernels.dispatch.fastest`: the implementations of `op` by name, at one set of `sizes`."""

    op: str
    sizes: tuple[int, ...]
    dtype: torch.dtype
    ways: Mapping[str, Callable[[], object]]
