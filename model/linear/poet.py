"""A frozen matrix between two orthogonal ones that train (POET, arXiv 2506.08001), by products of activations alone."""

from math import gcd
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kernels.sparse_low_rank_linear.choice import Choice
from model.errors import UserError
from model.linear.merging import MergingLinear, Reset, begin_again
from model.schema import Frozen
from model.seeding import fill_normal, generator


class Poet(MergingLinear):
    """y = x W^T with W = R W0 P, W0 (out, in) frozen, R and P orthogonal: blocks of `block` rows of a permuted order.

    A block is (I + Q)(I + Q + Q^2 + Q^3 + Q^4), near the Cayley transform (I + Q)(I - Q)^-1, with Q skew, at first 0:
    with an even number of powers it is orthogonal up to |Q|^10. So W keeps the singular values of W0. A merge makes
    W0 <- R W0 P, Q <- 0, and draws other orders, so that in time every row meets every other. As in POET-X it is the
    activations that are rotated: no gradient of a dense matrix is ever made, and activations are kept at four places
    rather than one.

    W0 is kept in the orders of its blocks: `weight`[i, j] is the entry (order_out[i], order_in[j]) of W0.
    """

    class Config(Frozen):
        """A frozen matrix between two block-orthogonal ones that train and are merged into it at intervals (POET)."""

        name: Literal["poet"] = "poet"
        block: int = Field(256, ge=2)
        """Rows that a rotation mixes at a time; divides both sides of every projection."""
        merge_every: int = Field(200, ge=1)
        """Applied updates from one merge to the next."""
        scale: float = Field(0.25, gt=0)
        """Learning rate of the rotations over that of all else: what trains is Q / scale. The release's by default."""

    silent_at_zero = ()
    fixed = ("block", "scale")

    weight: Tensor
    order_in: Tensor
    order_out: Tensor

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        block = config.block
        if in_features % block or out_features % block:
            raise UserError(
                f"linear.block {block} does not divide both sides of {name} ({out_features} x {in_features}); set it "
                f"to a divisor of {gcd(in_features, out_features)}"
            )
        self.block, self.merge_every, self.scale = block, config.merge_every, config.scale
        pairs = block * (block - 1) // 2
        self.register_buffer("weight", torch.empty(out_features, in_features))
        self.register_buffer("order_in", torch.empty(in_features, dtype=torch.int32))
        self.register_buffer("order_out", torch.empty(out_features, dtype=torch.int32))
        self.Q_in = nn.Parameter(torch.empty(in_features // block, pairs))
        self.Q_out = nn.Parameter(torch.empty(out_features // block, pairs))

    def forward(self, x: Tensor) -> Tensor:
        P, R = self._rotations()
        x = _rotate(_Reorder.apply(x, self.order_in), P.to(x.dtype))
        y = _rotate(self.multiply(x, self.weight), R.to(x.dtype))
        return _Reorder.apply(y, _inverse(self.order_out))

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw W0 normal, its rows then normalised to 1 as in the release, and the orders; Q is zero."""
        whole = torch.empty(self.out_features, self.in_features, device=self.weight.device)
        fill_normal(whole, 1.0, seed, f"{self.name}.weight")
        self._keep(F.normalize(whole), seed, 0)

    @staticmethod
    def multiplies_matrix(config: Any) -> bool:
        return True

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        P, R = self._rotations()
        ordered = _rotate(_rotate(self.weight.float(), P.mT).t(), R).t()
        return ordered[_inverse(self.order_out).long()][:, _inverse(self.order_in).long()]

    @torch.no_grad()
    def merge(self, seed: int, index: int) -> dict[str, Reset]:
        """Merge in fp32, and begin again. The release counts the steps of Q anew too; here all parameters share one."""
        self._keep(self.dense_weight(), seed, index)
        return {"Q_in": begin_again, "Q_out": begin_again}

    def _keep(self, whole: Tensor, seed: int, index: int) -> None:
        """Make `whole` (out, in) the map, with other orders."""
        random = generator(seed, "order", self.name, index)
        for order in (self.order_in, self.order_out):
            order.copy_(torch.randperm(len(order), generator=random))
        self.weight.copy_(whole[self.order_out.long()][:, self.order_in.long()])
        for Q in (self.Q_in, self.Q_out):
            Q.zero_()

    def _rotations(self) -> tuple[Tensor, Tensor]:
        """P (in / block, block, block) and R (out / block, block, block), in fp32."""
        Q = torch.cat([self.Q_in, self.Q_out]).float() * self.scale
        above = torch.triu_indices(self.block, self.block, 1, device=Q.device)
        upper = Q.new_zeros(len(Q), self.block, self.block).index_put(
            (torch.arange(len(Q), device=Q.device)[:, None], *above), Q
        )
        skew = upper - upper.mT
        square = skew @ skew
        powers = torch.eye(self.block, device=Q.device) + skew + square + square @ (skew + square)
        P, R = (powers + skew @ powers).split([len(self.Q_in), len(self.Q_out)])
        return P, R

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        return (in_features + out_features) // config.block * (config.block * (config.block - 1) // 2)

    @staticmethod
    def count_frozen(config: Config, in_features: int, out_features: int) -> int:
        return out_features * in_features

    @classmethod
    def training_flops(
        cls,
        config: Any,
        in_features: int,
        out_features: int,
        tokens: int,
        choice: Choice | None = None,
        micro_steps: int = 1,
    ) -> int:
        """Count the product with W0, the rotations of activations, and what the rotations are made by: three products
        of every block, and twice as many in the backward pass."""
        sides, block = in_features + out_features, config.block
        rotated = 4 * tokens * out_features * in_features + 6 * tokens * sides * block
        return int(micro_steps * (rotated + 18 * sides * block**2))


def _rotate(x: Tensor, blocks: Tensor) -> Tensor:
    """x (..., n) with each part x_k (..., b) of it as B_k x_k; blocks (n / b, b, b)."""
    parts = x.unflatten(-1, blocks.shape[:2])
    return torch.einsum("...kc,kbc->...kb", parts, blocks).flatten(-2)


def _inverse(order: Tensor) -> Tensor:
    places = torch.arange(len(order), dtype=order.dtype, device=order.device)
    return torch.empty_like(order).index_copy_(0, order.long(), places)


class _Reorder(torch.autograd.Function):
    """x (..., n) in another order; its gradient is gathered too, where autograd would add one by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(-1, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return dy.index_select(-1, _inverse(order)), None
