"""The SLTrain linear: a low-rank product plus a sparse matrix with a fixed random support (arXiv 2406.02214)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kernels.sparse_low_rank_linear.choice import Choice
from model.linear.base import BaseLinear
from model.linear.low_rank import require_rank_fits
from model.linear.ranks import RankTable
from model.linear.support import SUPPORTS
from model.schema import Frozen
from model.seeding import fill_uniform


class SparseLowRank(BaseLinear):
    """y = x W^T with W = scale B A + S: A (rank, in), B (out, rank), S trained on its support, scale = alpha / rank."""

    class Config(Frozen):
        """Sparse-plus-low-rank projections (SLTrain); the defaults are the paper's for 60M parameters."""

        name: Literal["sparse_low_rank"] = "sparse_low_rank"
        rank: int = Field(128, ge=1)
        """Inner width of the low-rank factors; at most the smaller side of every projection."""
        ranks: RankTable = ()
        """Ranks of linears by patterns of their names, in place of `rank`; the last pattern that matches decides."""
        alpha: float = Field(32.0, gt=0)
        """Numerator of the scale alpha / rank of the low-rank product; the sparse part is not scaled."""
        density: float = Field(0.03, gt=0, lt=1)
        """Part of each projection's entries that the sparse matrix holds."""
        support: Literal["element", "block"] = "element"
        """How the sparse entries are drawn. element: every set of single entries is equally likely, as in the paper.
        block: square blocks of 16 to 128, evenly spread: another method, and faster than dense linears on a GPU."""

    silent_at_zero = ("B", "values")
    fixed = ("support",)

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        require_rank_fits(config.rank, in_features, out_features, name)
        self.config = config
        self.scale = config.alpha / config.rank
        self.support = SUPPORTS[config.support](config.density, in_features, out_features, f"{name}.support")
        self.A = nn.Parameter(torch.empty(config.rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, config.rank))
        self.values = nn.Parameter(torch.empty(self.support.values_shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.support.linear(x, self.A, self.B, self.values, self.scale)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw A and values uniform in +-1/sqrt(in) and a fresh support; B is zero."""
        self.support.reset_parameters(seed)
        bound = self.in_features**-0.5
        fill_uniform(self.A, bound, seed, f"{self.name}.A")
        self.B.zero_()
        fill_uniform(self.values, bound, seed, f"{self.name}.values")

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        return self.support.add_to(self.scale * (self.B.float() @ self.A.float()), self.values)

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        entries = SUPPORTS[config.support].count(config.density, in_features, out_features)
        return config.rank * (out_features + in_features) + entries

    @classmethod
    def training_flops(
        cls,
        config: Config,
        in_features: int,
        out_features: int,
        tokens: int,
        choice: Choice | None = None,
        micro_steps: int = 1,
    ) -> int:
        """Count what the choice computes: the path through the factors and S, or the dense matmuls and what W costs.

        That is building W as often as its keep asks, and reducing its gradient to both factors' as often as it is not
        summed. Recomputed activations count nothing, so neither does a W that is built again for them.
        """
        how, numel = choice or Choice(), out_features * in_features
        if not SUPPORTS[config.support].MAY_BUILD or how.path == "csr":
            return super().training_flops(config, in_features, out_features, tokens, choice, micro_steps)
        built = {"none": 2 * micro_steps, "layer": micro_steps, "step": 1}[how.keep]
        reduced = 1 if how.accumulate else micro_steps
        return 6 * micro_steps * tokens * numel + (2 * built + 4 * reduced) * numel * config.rank
