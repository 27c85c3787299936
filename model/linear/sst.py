"""A dense matrix as its singular value decomposition, of which a sample of vectors trains at a time (SST)."""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.linear.low_rank import require_rank_fits
from model.linear.merging import MergingLinear, Moment, Reset, begin_again
from model.schema import Frozen
from model.seeding import fill_normal, generator


class Sst(MergingLinear):
    """y = x W^T with W = sum_i s_i u_i v_i^T over all q = min(in, out) vectors (SST, arXiv 2405.15481).

    All s train, and the pairs of vectors numbered `active`: they are `U` (out, rank) and `V` (in, rank). The others are
    frozen in `rest_U` (out, q) and `rest_V` (in, q), which are zero where a pair is active. Gradients of U and V are
    the paper's enhanced ones, without the factor s: a pair of a small singular value turns as fast as one of a large.

    After every update s is made at least 0 and vectors of length 1 (so W moves by a little). After `resample_every` of
    them other pairs become active, each with probability 1/2 (1 / q + s_i / sum of s), without replacement; every
    q // rank of those, W is decomposed anew, which makes the vectors orthogonal again. The vectors are twice as many
    numbers as a square W has: this is a baseline, not a way to save memory.
    """

    class Config(Frozen):
        """Projections by their singular values, which train with a sample of singular vectors at a time (SST)."""

        name: Literal["sst"] = "sst"
        rank: int = Field(64, ge=1)
        """Pairs of singular vectors that train at a time; at most the smaller side of every projection."""
        resample_every: int = Field(200, ge=1)
        """Applied updates from one sample of pairs to the next."""

    silent_at_zero = ("s",)
    widens = False
    fixed = ("rank",)
    merge_every = 1

    rest_U: Tensor
    rest_V: Tensor
    active: Tensor

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        require_rank_fits(config.rank, in_features, out_features, name)
        q, rank = min(in_features, out_features), config.rank
        self.resample_every, self.decompose_every = config.resample_every, config.resample_every * (q // rank)
        self.busiest = self.decompose_every
        self.register_buffer("rest_U", torch.empty(out_features, q))
        self.register_buffer("rest_V", torch.empty(in_features, q))
        self.register_buffer("active", torch.empty(rank, dtype=torch.int32))
        self.s = nn.Parameter(torch.empty(q))
        self.U = nn.Parameter(torch.empty(out_features, rank))
        self.V = nn.Parameter(torch.empty(in_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        s = self.s.to(x.dtype)
        rest = F.linear(F.linear(x, self.rest_V.to(x.dtype).t()) * s, self.rest_U.to(x.dtype))
        active = _Enhanced.apply(x, self.U.to(x.dtype), self.V.to(x.dtype), s[self.active.long()])
        return rest.add_(active)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Decompose the matrix that a dense linear would begin with, on the CPU, and draw the first sample."""
        weight = torch.empty(self.out_features, self.in_features)
        fill_normal(weight, self.init_std, seed, f"{self.name}.weight")
        self._decompose(weight, seed, 0)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        s = self.s.float()
        rest = (self.rest_U.float() * s) @ self.rest_V.float().t()
        return rest.addmm(self.U.float() * s[self.active.long()], self.V.float().t())

    @torch.no_grad()
    def merge(self, seed: int, index: int) -> dict[str, Reset]:
        """After update `index`: tidy up, and where it is time take other pairs, or decompose W before that."""
        self.s.clamp_(min=0)
        for vectors in (self.U, self.V):
            vectors.copy_(F.normalize(vectors.float(), dim=0))
        if index % self.resample_every:
            return {}
        if index % self.decompose_every == 0:
            self._decompose(self.dense_weight(), seed, index)
            return dict.fromkeys(("s", "U", "V"), begin_again)
        old = self.active.long()
        U = self.rest_U.index_copy(1, old, self.U)
        V = self.rest_V.index_copy(1, old, self.V)
        active = self._stay(old, self._sample(self.s.float(), seed, index))
        self._activate(U, V, active)
        fresh = active != old
        return {"U": partial(_begin_again_at, fresh), "V": partial(_begin_again_at, fresh)}

    def _decompose(self, weight: Tensor, seed: int, index: int) -> None:
        """Make `weight` (out, in) the map, with a new sample."""
        U, s, Vh = torch.linalg.svd(weight, full_matrices=False)
        self.s.copy_(s)
        self._activate(U, Vh.t(), self._sample(s, seed, index))

    def _sample(self, s: Tensor, seed: int, index: int) -> Tensor:
        """Numbers (rank,) of the pairs to train, ascending, on the device of s."""
        whole = s.cpu().double()
        chance = (1 / len(whole) + whole / whole.sum().clamp(min=1e-300)) / 2
        random = generator(seed, "sample", self.name, index)
        return torch.multinomial(chance, len(self.active), generator=random).sort().values.to(s.device)

    @staticmethod
    def _stay(old: Tensor, drawn: Tensor) -> Tensor:
        """`drawn` in an order in which what was active before keeps its place."""
        before, after = old.tolist(), drawn.tolist()
        arrivals = iter(sorted(set(after) - set(before)))
        remaining = set(after)
        return torch.tensor([n if n in remaining else next(arrivals) for n in before], device=old.device)

    def _activate(self, U: Tensor, V: Tensor, active: Tensor) -> None:
        """Split all vectors into those that train and the rest."""
        for vectors, trained, rest in ((U, self.U, self.rest_U), (V, self.V, self.rest_V)):
            trained.copy_(vectors[:, active])
            rest.copy_(vectors.index_fill(1, active, 0.0))
        self.active.copy_(active)

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        return min(in_features, out_features) + config.rank * (in_features + out_features)

    @staticmethod
    def count_frozen(config: Config, in_features: int, out_features: int) -> int:
        return min(in_features, out_features) * (in_features + out_features)


def _begin_again_at(columns: Tensor, moment: Moment, values: Tensor) -> Tensor:
    """`begin_again` in these columns."""
    return torch.where(columns.to(values.device), begin_again(moment, values), values)


class _Enhanced(torch.autograd.Function):
    """((x V) * s) U^T with gradients of U and V as if s were 1 (arXiv 2405.15481, section 4.2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, U: Tensor, V: Tensor, s: Tensor) -> Tensor:
        inner = x @ V
        ctx.save_for_backward(x, U, V, s, inner)
        return F.linear(inner * s, U)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, U, V, s, inner = ctx.saved_tensors
        back = dy @ U
        dx = F.linear(back * s, V)
        back, inner = back.flatten(0, -2), inner.flatten(0, -2)
        return dx, dy.flatten(0, -2).t() @ inner, x.flatten(0, -2).t() @ back, (back * inner).sum(0)
