"""A dense matrix as factors and sparse entries: what a linear must hold to be near a weight that was trained dense.

The factors are the truncated singular value decomposition, the nearest matrix of its rank in the Frobenius norm (Eckart
and Young, 1936), shared evenly: B = U sqrt(s / scale) and A = sqrt(s / scale) V^T, so that scale B A = U s V^T and both
factors have the same singular values. What is left, R = W - scale B A, is kept on the support of the sparse part, at
random entries as SLTrain draws them or at those where |R| is largest: given the factors, nothing on that support is
nearer to W.

A linear with a frozen matrix takes W as that, less the product with which its factors begin, which is mostly zero.
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
from model.linear.support.block import BlockSparse
from model.linear.support.element import ElementSparse
from model.linear.supported import SupportedLinear
from model.linear.truncated_svd import balanced_factors
from model.seeding import generator

Support = Literal["random", "magnitude"]
"""Where the sparse entries are: drawn from (seed, name), or where the factors miss most."""


KINDS = (LowRank, SupportedLinear, Lora)
"""The linears that `approximate` fills."""


@dataclass(frozen=True)
class Approximation:
    """How near a linear is to the dense weight that it was made from."""

    rank: int
    entries: int
    """Sparse ones."""
    error: float
    """||W - (scale B A + S)|| / ||W|| in the Frobenius norm; 0 for a zero W."""
    low_rank_error: float
    """||W - scale B A|| / ||W||: what it would be without sparse entries. 1 where there are no factors."""


@torch.no_grad()
def approximate(linear: BaseLinear, weight: Tensor, seed: int, support: Support = "random") -> Approximation:
    """Fill `linear`, one of KINDS, to be near `weight` (out, in).

    The numbers of `weight` are finite. A support of blocks is always drawn.
    """
    if isinstance(linear, Lora):
        linear.take(weight, seed)
        return Approximation(len(linear.A), 0, 0.0, 0.0)
    rest = weight.to(torch.float32, copy=True)
    size = rest.norm().item() or 1.0  # all errors are 0 where W is
    rank = entries = 0
    if isinstance(linear, LowRank | SparseLowRank):
        rank = linear.A.shape[0]
        A, B = balanced_factors(rest, rank, linear.scale, generator(seed, "from_dense", linear.name))
        linear.A.copy_(A)
        linear.B.copy_(B)
        rest -= linear.scale * (linear.B @ linear.A)
    low_rank_error = error = rest.norm().item() / size
    if isinstance(linear, SupportedLinear):
        _keep(linear, rest, seed, support)
        entries = linear.values.numel()
        error = linear.support.add_to(rest.neg_(), linear.values).norm().item() / size
    assert rank or entries, linear
    return Approximation(rank, entries, error, low_rank_error)


def _keep(linear: SupportedLinear, rest: Tensor, seed: int, support: Support) -> None:
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
    assert isinstance(linear.support, BlockSparse)
    linear.support.reset_parameters(seed)
    block, rows = linear.support.block, len(linear.support.columns)
    blocks = rest.view(rows, block, -1, block).transpose(1, 2)  # [block-rows, block-columns, b, b]
    found = blocks[torch.arange(rows)[:, None], linear.support.columns.long()]
    linear.values.copy_(found.reshape(linear.values.shape))
