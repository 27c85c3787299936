"""The auto-encoder of CoLA: two thin matrices with an activation between them (arXiv 2502.10940)."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from model.linear.base import BaseLinear
from model.linear.low_rank import require_rank_fits
from model.linear.ranks import RankTable
from model.schema import Frozen
from model.seeding import fill_normal


class CoLA(BaseLinear):
    """y = silu(x A^T) B^T with A (rank, in) and B (out, rank): SwiGLU keeps its own silu."""

    class Config(Frozen):
        """Low-rank auto-encoders B silu(A x) (CoLA); no dense weight stands for one, so there is no export."""

        name: Literal["cola"] = "cola"
        rank: int = Field(128, ge=1)
        """Inner width of the factors; at most the smaller side of every projection."""
        ranks: RankTable = ()
        """Ranks of linears by patterns of their names, in place of `rank`; the last pattern that matches decides."""

    silent_at_zero = ("B",)
    not_a_matrix = "an activation lies between their factors"

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        require_rank_fits(config.rank, in_features, out_features, name)
        self.config = config
        self.A = nn.Parameter(torch.empty(config.rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, self.A.to(x.dtype))), self.B.to(x.dtype))

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw both factors normal, of standard deviation (rank (in + out))^-1/4 as in the authors' release.

        The entries of B A then have (in + out)^-1/2; init_std has no part in it.
        """
        self.draw_rows(self.config, self.A, self.out_features, seed, f"{self.name}.A")
        fill_normal(self.B, _std(self.config.rank, self.in_features, self.out_features), seed, f"{self.name}.B")

    @staticmethod
    def draw_rows(config: Config, rows: Tensor, out_features: int, seed: int, name: str) -> None:
        fill_normal(rows, _std(config.rank, rows.shape[1], out_features), seed, name)

    def dense_weight(self) -> Tensor:
        raise TypeError(f"{self.name} has no dense weight")

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        return config.rank * (out_features + in_features)


def _std(rank: int, in_features: int, out_features: int) -> float:
    return (rank * (in_features + out_features)) ** -0.25
