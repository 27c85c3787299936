"""The truncated singular value decomposition of a matrix, and the factors of even share that it gives."""

import torch
from torch import Tensor

EXACT_SIDE = 768
"""A matrix with a side of at most this is decomposed in full: that takes as long there."""

OVERSAMPLING = 16
"""Directions that are followed beside those that are kept."""

ITERATIONS = 8
"""Multiplications with W W^T; see `truncated_svd` for what each is worth."""


def balanced_factors(matrix: Tensor, rank: int, scale: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return A = sqrt(s / scale) V^T [rank, n] and B = U sqrt(s / scale) [m, rank], whose scale B A is U s V^T.

    That is the matrix of `rank` nearest to `matrix` [m, n]; both factors have the same singular values.
    """
    U, s, Vh = truncated_svd(matrix, rank, random)
    share = (s / scale).sqrt()
    return share[:, None] * Vh, U * share


@torch.no_grad()
def truncated_svd(matrix: Tensor, rank: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], s [r] and V^T [r, n] of the `rank` largest singular values of `matrix` [m, n], in its dtype.

    Exact up to rounding for a small matrix or a rank near the smaller side. Else by subspace iteration from a random
    start (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4), whose product misses the matrix by a little
    more than the best one does: ||W - U s V^T|| is larger by 0.2 % for a matrix of independent normal numbers, whose
    spectrum is the flattest, by 0.01 % where the i-th singular value is i^-1/2, and by less where they fall off faster.
    """
    m, n = matrix.shape
    width = rank + OVERSAMPLING
    if min(m, n) <= EXACT_SIDE or 3 * width >= min(m, n):
        U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
        return U[:, :rank], s[:rank], Vh[:rank]
    if m < n:
        V, s, Uh = truncated_svd(matrix.t(), rank, random)
        return Uh.t(), s, V.t()
    start = torch.randn(n, width, generator=random, dtype=matrix.dtype)
    Q = torch.linalg.qr(matrix @ start).Q
    for _ in range(ITERATIONS):
        Q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.t() @ Q).Q).Q
    U, s, Vh = torch.linalg.svd(Q.t() @ matrix, full_matrices=False)
    return (Q @ U)[:, :rank], s[:rank], Vh[:rank]
