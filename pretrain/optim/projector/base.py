"""What every projector offers: a basis for a gradient."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pretrain.optim.matrix import Matrix


class Projector(ABC):
    """Finds P (m, rank) for a matrix's gradient in left form, in fp32."""

    needs_gradient: ClassVar[bool] = True
    """False for random bases, which every rank draws for itself."""

    @abstractmethod
    def basis(self, matrix: Matrix, G: Tensor | None, old: Tensor | None, random: torch.Generator) -> Tensor | None:
        """A new basis (m, rank) fp32 for G (m, n) fp32 or bf16, on its device; None keeps the old one.

        None is the answer to a gradient that is zero or not finite. A gradient of lower rank than `matrix.rank` still
        gives a full basis (completed by other directions). `old` is the present basis; `random` is seeded from
        (seed, matrix, step), on the CPU.
        """


def scaled(G: Tensor) -> Tensor | None:
    """G in fp32 with largest entry 1, so that no square over- or underflows; None if G is zero or not finite."""
    least, most = G.aminmax()
    largest = torch.maximum(-least, most).float()
    if not 0 < float(largest) < math.inf:
        return None
    return G / largest if G.dtype == torch.float32 else G.float().div_(largest)


def align_signs(new: Tensor, old: Tensor | None) -> Tensor:
    """`new` (m, rank) with each column turned to the side of the same column of `old`.

    The signs of singular vectors are arbitrary and differ between libraries; moments that stay in their coordinates
    while the basis moves would be subtracted instead of added.
    """
    if old is None:
        return new
    return new * torch.where((new * old).sum(0) < 0, -1.0, 1.0)


def initial_basis(matrix: Matrix, random: torch.Generator, device: torch.device) -> Tensor:
    """A random orthonormal P (m, rank), the same at every world size."""
    gaussian = torch.randn(matrix.m, matrix.rank, generator=random, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.to(torch.float32).to(device)
