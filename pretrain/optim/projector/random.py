"""A random projection that keeps norms on average (APOLLO, arXiv 2412.05270)."""

import torch
from torch import Tensor

from pretrain.optim.matrix import Matrix
from pretrain.optim.projector.base import Projector


class Gaussian(Projector):
    """P with entries N(0, 1 / rank), drawn on the CPU, so the same on every device; columns are not orthonormal."""

    needs_gradient = False

    def basis(self, matrix: Matrix, G: Tensor | None, old: Tensor | None, random: torch.Generator) -> Tensor | None:
        P = torch.randn(matrix.m, matrix.rank, generator=random).mul_(matrix.rank**-0.5)
        return P if old is None else P.to(old.device)


class RandomOrthogonal(Projector):
    """P uniform on the Stiefel manifold: Q of a Gaussian matrix, with the signs that make R's diagonal positive."""

    needs_gradient = False

    def basis(self, matrix: Matrix, G: Tensor | None, old: Tensor | None, random: torch.Generator) -> Tensor | None:
        Q, R = torch.linalg.qr(torch.randn(matrix.m, matrix.rank, generator=random))
        P = (Q * torch.where(R.diagonal() < 0, -1.0, 1.0)).contiguous()
        return P if old is None else P.to(old.device)
