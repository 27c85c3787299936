"""Singular values of weights and gradients, how many of them count, and the ranks that they suggest.

A matrix of few large singular values is nearly one of low rank. Three figures say how nearly: its stable rank, its
effective rank, and how many of its singular values lie above a threshold that is the same for all matrices of a model,
which is WeLore's rule for giving each matrix a rank of its own (arXiv 2407.11239).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

HALVINGS = 60
"""Steps of the bisection for a threshold in [0, 1]: more than a float64 tells apart."""


@torch.no_grad()
def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values [min(m, n)] of `matrix` [m, n], largest first, all of them by an exact method.

    In float64 for a matrix in float64, else in fp32. All are NaN where the matrix has a number that is not finite.
    """
    exact = matrix if matrix.dtype == torch.float64 else matrix.float()
    if not exact.isfinite().all():
        return exact.new_full((min(exact.shape),), math.nan)
    return torch.linalg.svdvals(exact)


@torch.no_grad()
def product_singular_values(B: Tensor, A: Tensor, scale: float = 1.0) -> Tensor:
    """Return the singular values [r] of scale B A, largest first, for B [m, r] and A [r, n]; the other ones are zero.

    B A is never built: with B = Q R and A^T = Q' R' they are those of scale R R'^T, which has r rows and columns.
    """
    B, A = (t if t.dtype == torch.float64 else t.float() for t in (B, A))
    if not (B.isfinite().all() and A.isfinite().all()):
        return B.new_full((min(*B.shape, A.shape[1]),), math.nan)
    left, right = torch.linalg.qr(B, mode="r").R, torch.linalg.qr(A.t(), mode="r").R
    return singular_values(scale * (left @ right.t()))


def stable_rank(values: Tensor) -> float:
    """Return ||W||_F^2 / ||W||_2^2 of a matrix with these singular values, largest first (arXiv math/0503442).

    At least 1, at most the rank, and hardly moved by many tiny ones; 0 for the zero matrix.
    """
    values = values.double()
    return float((values / values[0]).square().sum()) if values[0] != 0 else 0.0


def effective_rank(values: Tensor) -> float:
    """Return exp(-sum p ln p) with p = values / their sum: RankMe (arXiv 2210.02885, equation 1) without its epsilon.

    The number of directions that share the spectrum's weight: r for r equal singular values, 1 for a single one; 0 for
    the zero matrix.
    """
    parts = values.double()
    if parts[0] == 0:
        return 0.0
    parts = parts / parts.sum()
    return float(torch.special.entr(parts).sum().exp())


def normalised(values: Tensor) -> Tensor:
    """Return (s - s_min) / (s_max - s_min) of each singular value s, largest first, as WeLore's released code does.

    All ones where they are equal, since none of them stands out. For a matrix of less than full rank s_min is zero, and
    a singular value counts by its part of the largest. float64.
    """
    values = values.double()
    width = values[0] - values[-1]
    return (values - values[-1]) / width if width > 0 else torch.ones_like(values)


def largest_rank(n_out: int, n_in: int, entries: int = 0) -> int:
    """Return the largest rank, at least 1, at which factors and `entries` sparse values are no more than n_out n_in."""
    return max(1, (n_out * n_in - entries) // (n_out + n_in))


@torch.no_grad()
def intruder_dimensions(new: Tensor, old: Tensor, top: int = 10, epsilon: float = 0.5) -> int:
    """Count the intruder dimensions of `new` [m, n]: of its first `top` left singular vectors, those that no left
    singular vector of `old` [m, n] resembles by a cosine of at least `epsilon` (arXiv 2410.21228, algorithm 1).

    Training that goes on from `old` has put directions there that were none of its before. Signs of singular vectors
    mean nothing, so a cosine counts by its magnitude.
    """
    U_new, U_old = (torch.linalg.svd(matrix.float(), full_matrices=False).U for matrix in (new, old))
    largest = (U_new[:, :top].t() @ U_old).abs().amax(dim=1)
    return int((largest < epsilon).sum())


@dataclass(frozen=True)
class Ranks:
    """What WeLore's rule gives: a rank for each matrix, by name."""

    threshold: float
    """Normalised singular values below it are left out; the same for all matrices."""
    ranks: dict[str, int]
    reduction: float
    """Part of all singular values that is left out."""


def choose_ranks(
    spectra: Mapping[str, Tensor],
    fits: Callable[[dict[str, int]], bool],
    caps: Mapping[str, int] | None = None,
    multiple: int = 1,
) -> Ranks | None:
    """Find by bisection the lowest threshold in [0, 1] whose ranks fit, `fits` being true from some threshold on.

    `spectra` are all singular values of each matrix, largest first, and `caps` the most that its rank may be (see
    `largest_rank`). Ranks are rounded down to multiples of `multiple`, except for those below it. A matrix keeps at
    least one. None where even the highest threshold does not fit.
    """
    curves = {name: normalised(values).flip(0).contiguous() for name, values in spectra.items()}

    def ranks_at(threshold: float) -> dict[str, int]:
        wanted = torch.tensor(threshold, dtype=torch.float64)
        kept = {name: len(curve) - int(torch.searchsorted(curve, wanted)) for name, curve in curves.items()}
        most = {name: max(1, min(rank, (caps or {}).get(name, rank))) for name, rank in kept.items()}
        return {name: rank - rank % multiple if rank > multiple else rank for name, rank in most.items()}

    low, high = 0.0, 1.0
    if not fits(ranks_at(high)):
        return None
    if fits(ranks_at(low)):
        high = low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(ranks_at(middle)) else (middle, high)
    ranks = ranks_at(high)
    return Ranks(high, ranks, reduction(spectra, ranks))


def reduction(spectra: Mapping[str, Tensor], ranks: Mapping[str, int]) -> float:
    """Return the part of all singular values that `ranks` leave out: WeLore's effective rank reduction."""
    return 1 - sum(ranks.values()) / sum(map(len, spectra.values()))


def ranks_for_reduction(
    spectra: Mapping[str, Tensor], target: float, caps: Mapping[str, int] | None = None, multiple: int = 1
) -> Ranks | None:
    """Give ranks that leave out at least the part `target` of all singular values; None where that leaves too few.

    With `caps` more may be left out than was asked for: a square matrix keeps half of its singular values at most.
    """
    return choose_ranks(spectra, lambda ranks: reduction(spectra, ranks) >= target, caps, multiple)
