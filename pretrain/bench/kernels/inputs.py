"""Inputs of the cases: projections of the shipped models, filled at random from a fixed seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.support import TileSupport


@dataclass(frozen=True)
class Projection:
    """One linear of a model: W (n_out, n_in) = scale B A + S."""

    n_out: int
    n_in: int
    rank: int
    density: float

    def __str__(self) -> str:
        return f"{self.n_out}x{self.n_in} rank {self.rank} density {self.density}"

    @property
    def scale(self) -> float:
        return 8 / self.rank


LLAMA_60M = [Projection(512, 512, 128, 0.03), Projection(1376, 512, 128, 0.03), Projection(512, 1376, 128, 0.03)]
LLAMA_350M = [Projection(1024, 1024, 256, 0.03), Projection(2736, 1024, 256, 0.03)]
LLAMA_1B = [Projection(2048, 2048, 512, 0.03), Projection(5461, 2048, 512, 0.03), Projection(2048, 5461, 512, 0.03)]
LLAMA_7B_UP = Projection(11008, 4096, 1024, 0.05)


def projections(device: torch.device) -> list[Projection]:
    """The projections that are worth timing on `device`."""
    return [*LLAMA_60M, *LLAMA_350M, *LLAMA_1B, LLAMA_7B_UP] if device.type == "cuda" else LLAMA_60M


class Inputs:
    """Random tensors on `device` in `dtype`."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self._device, self._dtype = device, dtype
        self._random = torch.Generator(device).manual_seed(0)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self._random, device=self._device, dtype=self._dtype)

    def orthonormal(self, rows: int, cols: int) -> Tensor:
        return torch.linalg.qr(self.normal(rows, cols).float())[0].to(self._dtype).contiguous()

    def factors(self, shape: Projection) -> tuple[Tensor, Tensor, Tensor, TileSupport]:
        """A (rank, in), B (out, rank), values (nnz,) and their support, of the size that training has."""
        support = self.support(shape)
        A, B = self.normal(shape.rank, shape.n_in), self.normal(shape.n_out, shape.rank)
        return A * shape.n_in**-0.5, B, self.normal(support.nnz) * shape.n_in**-0.5, support

    def support(self, shape: Projection) -> TileSupport:
        numel = shape.n_out * shape.n_in
        drawn = torch.randperm(numel, generator=self._random, device=self._device)[: int(shape.density * numel)]
        return TileSupport.from_flat(drawn.sort().values, (shape.n_out, shape.n_in))
