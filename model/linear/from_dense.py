"""A dense matrix as factors and sparse entries: what a linear must hold to be near a weight that was trained dense.

The factors are the truncated singular value decomposition, the nearest matrix of its rank in the Frobenius norm (Eckart
and Young, 1936), shared evenly: B = U sqrt(s / scale) and A = sqrt(s / scale) V^T, so that scale B A = U s V^T and both
factors have the same singular values. What is left, R = W - scale B A, is kept on the support of the sparse part, at
random entries as SLTrain draws them or at those where |R| is largest: given the factors, nothing on that support is
nearer to W.

A linear with a frozen matrix takes W as that, exactly, and its factors begin as ever, with a product of zero.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.support import TileSupport
from model.linear.base import BaseLinear
from model.linear.lora import Lora
from model.linear.low_rank import LowRank
from model.linear.sparse_low_rank import SparseLowRank
from model.linear.support.element import ElementSparse
from model.seeding import generator

Support = Literal["random", "magnitude"]
"""Where the sparse entries are: drawn from (seed, name), or where the factors miss most."""

EXACT_SIDE = 768
"""A matrix with a side of at most this is decomposed in full: that takes as long there."""

OVERSAMPLING = 16
"""Directions that are followed beside those that are kept."""

ITERATIONS = 8
"""Multiplications with W W^T; see `truncated_svd` for what each is worth."""


@dataclass(frozen=True)
class Approximation:
    """How near a linear is to the dense weight that it was made from."""

    rank: int
    entries: int
    """Sparse ones."""
    error: float
    """||W - (scale B A + S)|| / ||W|| in the Frobenius norm; 0 for a zero W."""
    low_rank_error: float
    """||W - scale B A|| / ||W||: what it would be without sparse entries."""


@torch.no_grad()
def approximate(linear: BaseLinear, weight: Tensor, seed: int, support: Support = "random") -> Approximation:
    """Fill `linear`, low_rank, sparse_low_rank, lora or relora, to be near `weight` (out, in) of finite numbers.

    A support of blocks is always drawn.
    """
    assert isinstance(linear, LowRank | SparseLowRank | Lora), linear
    weight = weight.float()
    if isinstance(linear, Lora):
        linear.reset_parameters(seed)
        linear.weight.copy_(weight)
        return Approximation(len(linear.A), 0, 0.0, 0.0)
    rank = linear.A.shape[0]
    U, s, Vh = truncated_svd(weight, rank, generator(seed, "from_dense", linear.name))
    share = (s / linear.scale).sqrt()
    linear.B.copy_(U * share)
    linear.A.copy_(share[:, None] * Vh)
    rest = weight - linear.scale * (linear.B @ linear.A)
    size = weight.norm().item()
    low_rank_error = rest.norm().item() / size if size else 0.0
    if isinstance(linear, LowRank):
        return Approximation(rank, 0, low_rank_error, low_rank_error)
    _keep(linear, rest, seed, support)
    left = linear.support.add_to(rest.neg_(), linear.values).norm().item()
    return Approximation(rank, linear.values.numel(), left / size if size else 0.0, low_rank_error)


def _keep(linear: SparseLowRank, rest: Tensor, seed: int, support: Support) -> None:
    """Put `rest` (out, in) into the sparse part of `linear`, on a support that is drawn or chosen."""
    if isinstance(linear.support, ElementSparse):
        if support == "magnitude":
            chosen = rest.abs().flatten().topk(linear.values.numel(), sorted=False).indices.sort().values
            tiles = TileSupport.from_flat(chosen.to(torch.int32), linear.support.shape)
            linear.support.loc.copy_(tiles.loc)
            linear.support.tile_ptr.copy_(tiles.tile_ptr)
        else:
            linear.support.reset_parameters(seed)
        linear.values.copy_(rest.flatten()[linear.support.flat().long()])
        return
    linear.support.reset_parameters(seed)
    block, rows = linear.support.block, len(linear.support.columns)
    blocks = rest.view(rows, block, -1, block).transpose(1, 2)  # [block-rows, block-columns, b, b]
    found = blocks[torch.arange(rows)[:, None], linear.support.columns.long()]
    linear.values.copy_(found.reshape(linear.values.shape))


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
