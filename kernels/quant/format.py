"""A matrix of 8- or 4-bit codes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.arguments import LARGEST_OFFSET, check_matrix

GROUPS = (64, 128, 256)
"""Group sizes: a kernel's tile is one group wide, or divides it."""

TINY = 1e-30
"""Smallest range of a group; smaller ones lose precision, and a group of zeros divides by it."""


ALIGNMENT = 16
"""Rows of codes begin at multiples of this many bytes: a thread moves so many at once."""


def code_width(cols: int, bits: int) -> int:
    """Bytes of a row of codes."""
    return -(-cols * bits // (8 * ALIGNMENT)) * ALIGNMENT


@dataclass(frozen=True)
class Quantized:
    """A matrix W of `shape` (rows, cols), each row in groups of `group` elements, the last one shorter.

    W = (code - zero) * scale with the zero and scale of the element's group. codes uint8 (rows, bytes), bytes being
    `code_width(cols, bits)`: one for each element with 8 bits; with 4 an even column in the low nibble, the next one in
    the high nibble; 0 in what is left of a row. scales fp32 and zeros uint8 (rows, ceil(cols / group)). All contiguous.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    shape: tuple[int, int]
    bits: int
    group: int

    @classmethod
    def empty(cls, shape: tuple[int, int], bits: int, group: int, device: torch.device) -> "Quantized":
        """Uninitialised memory for a matrix of `shape`; ValueError for bits or a group that do not exist."""
        if bits not in (8, 4):
            raise ValueError(f"bits is {bits}; it must be 8 or 4")
        if group not in GROUPS:
            raise ValueError(f"group is {group}; it must be one of {GROUPS}")
        rows, cols = shape
        n_groups = -(-cols // group)
        return cls(
            torch.empty(rows, code_width(cols, bits), dtype=torch.uint8, device=device),
            torch.empty(rows, n_groups, dtype=torch.float32, device=device),
            torch.empty(rows, n_groups, dtype=torch.uint8, device=device),
            shape,
            bits,
            group,
        )

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.zeros.nbytes

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """ValueError unless this is a matrix of `shape` and its tensors are what the kernels take for granted."""
        if self.shape != tuple(shape):
            raise ValueError(f"{name} has shape {self.shape}; it must be {tuple(shape)}")
        if self.bits not in (8, 4) or self.group not in GROUPS:
            raise ValueError(f"{name} has {self.bits} bits in groups of {self.group}; no kernel reads that")
        rows, cols = self.shape
        per_group = (rows, -(-cols // self.group))
        check_matrix(f"{name}.codes", self.codes, (rows, code_width(cols, self.bits)), [torch.uint8])
        check_matrix(f"{name}.scales", self.scales, per_group, [torch.float32])
        check_matrix(f"{name}.zeros", self.zeros, per_group, [torch.uint8])
        if not (self.codes.is_contiguous() and self.scales.is_contiguous() and self.zeros.is_contiguous()):
            raise ValueError(f"{name}'s codes, scales and zeros must be contiguous")
        if self.codes.numel() * 8 // self.bits >= LARGEST_OFFSET:
            raise ValueError(f"{name} of shape {self.shape} has 2^31 elements or more")
