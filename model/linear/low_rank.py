"""A product of two thin matrices: the plain low-rank baseline of the papers."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from model.errors import UserError
from model.linear.base import BaseLinear
from model.linear.initial import Factors, among, draw_factors, draw_uniform
from model.linear.ranks import RankTable
from model.schema import Frozen


def require_rank_fits(rank: int, in_features: int, out_features: int, name: str) -> None:
    """UserError when `rank` exceeds what a matrix (out_features, in_features) can have."""
    if rank > min(in_features, out_features):
        raise UserError(
            f"linear.rank {rank} exceeds the smaller side of {name} ({out_features} x {in_features}); "
            f"set linear.rank to at most {min(in_features, out_features)}"
        )


class LowRank(BaseLinear):
    """y = scale (x A^T) B^T with A (rank, in), B (out, rank) and scale = alpha / rank."""

    class Config(Frozen):
        """Low-rank projections W = alpha / rank B A, both factors trained from the start."""

        name: Literal["low_rank"] = "low_rank"
        rank: int = Field(128, ge=1)
        """Inner width of the factors; at most the smaller side of every projection."""
        ranks: RankTable = ()
        """Ranks of linears by patterns of their names, in place of `rank`; the last pattern that matches decides."""
        alpha: float = Field(32.0, gt=0)
        """Numerator of the scale alpha / rank of the product."""
        init: Annotated[str, among("kaiming", "spectral")] = "kaiming"
        """How the factors start. kaiming: A uniform in +-1/sqrt(in), B normal, the product with model.init_std.
        spectral: the product nearest to a fresh dense matrix. ggd:NU, as in ggd:0.8: like kaiming, with a generalised
        Gaussian of shape NU (2: normal, 1: Laplace)."""

    silent_at_zero = ("B",)

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        require_rank_fits(config.rank, in_features, out_features, name)
        self.config, self.scale = config, config.alpha / config.rank
        self.A = nn.Parameter(torch.empty(config.rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and x.numel() == x.shape[-1]:  # a single token, as in sampling
            return F.linear(F.linear(x, self.A.to(x.dtype)) * self.scale, self.B.to(x.dtype))
        # Scaling B costs less than scaling the output: out * rank numbers instead of tokens * out.
        return F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype) * self.scale)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw the factors as `init` says; unlike beside a sparse part, B is not zero."""
        factors = Factors(self.A, self.B, self.scale, self.init_std, self.name, beside=False)
        draw_factors(self.config.init, factors, seed)

    @staticmethod
    def draw_rows(config: Config, rows: Tensor, out_features: int, seed: int, name: str) -> None:
        """Draw them as kaiming or a generalised Gaussian has them, whatever the others were drawn as."""
        draw_uniform(config.init, rows, rows.shape[1] ** -0.5, seed, name)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        return self.scale * (self.B.float() @ self.A.float())

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        return config.rank * (out_features + in_features)
