"""The leading singular vectors by randomised subspace iteration from the old basis (Halko et al., arXiv 0909.4061)."""

import torch
from torch import Tensor

from pretrain.optim.matrix import Matrix
from pretrain.optim.projector.base import Projector, align_signs, scaled

OVERSAMPLING = 8
"""Further random directions: they speed up convergence, and find what the old basis misses."""

SHORT = 64
"""A side up to this length is spanned whole, which is exact: on a flat spectrum few directions converge too slowly."""

MOST_ITERATIONS = 16

GAIN = 2e-3
"""Iterations end when half of one raises the captured energy by less than this fraction."""

COMPLETION = 1e-6
"""Weight of the previous basis in the new one: below rounding errors, except where the gradient has no more rank."""


class SubspaceIteration(Projector):
    """P = U[:, :rank] of G = U S V^T nearly: at least 99 % of the energy |P^T G|^2 that the exact one captures.

    That holds for sides up to SHORT, and for longer ones where singular values fall like k^-0.2 or faster; on flatter
    spectra, in which no direction stands out, 95 % was the least seen.

    Costs four m n (rank + 8) multiplications and additions per iteration: one where the old basis still fits, two or
    three on gradients of a model, more only from a random basis on a spectrum with little decay.
    """

    def basis(self, matrix: Matrix, G: Tensor | None, old: Tensor | None, random: torch.Generator) -> Tensor | None:
        assert G is not None
        G = scaled(G)
        if G is None:
            return None
        Q = torch.linalg.qr(_start(matrix, old, random).to(G.device)).Q
        completion = COMPLETION * torch.linspace(2, 1, Q.shape[1], device=G.device)  # columns keep their order
        # Householder QR stays orthonormal whatever the rank, and is faster on a CPU than Cholesky QR done twice.
        for _ in range(MOST_ITERATIONS):
            Z = G.t() @ Q  # [n, k]
            Q, R = torch.linalg.qr(torch.addmm(Q * completion, G, torch.linalg.qr(Z).Q))  # [m, k], [k, k]
            if float(R.norm() ** 2 / Z.norm() ** 2) < 1 + GAIN:
                break
        # G is near Q R Zq^T with Zq = qr(Z).Q, so the left singular vectors of R turn Q to those of G. In fp64, as
        # R R^T has the squares of the singular values.
        R = R.double()
        U = torch.linalg.eigh(R @ R.t()).eigenvectors.flip(1)[:, : matrix.rank]
        return align_signs(Q @ U.float(), old).contiguous()


def _start(matrix: Matrix, old: Tensor | None, random: torch.Generator) -> Tensor:
    """The old basis with random directions (m, k)."""
    known = 0 if old is None else matrix.rank
    shorter = min(matrix.m, matrix.n)
    k = shorter if shorter <= SHORT else min(matrix.rank + OVERSAMPLING, shorter)
    gaussian = torch.randn(matrix.m, k - known, generator=random)
    return gaussian if old is None else torch.cat((old, gaussian.to(old.device)), 1)
