"""The SLTrain linear: a low-rank product plus a sparse matrix with a fixed random support (arXiv 2406.02214)."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from model.linear.initial import Factors, among, draw_factors, draw_uniform
from model.linear.low_rank import LowRank, require_rank_fits
from model.linear.ranks import RankTable
from model.linear.support import SUPPORTS
from model.linear.supported import SupportedLinear
from model.schema import Frozen


class SparseLowRank(SupportedLinear):
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
        init: Annotated[str, among("kaiming", "spectral", "orthogonal")] = "kaiming"
        """How it starts; sparse values are uniform in +-1/sqrt(in). kaiming: A too, B zero, as in the paper. spectral:
        factors of the product nearest to a fresh dense matrix. orthogonal: neither factor zero, but their product.
        ggd:NU, as in ggd:0.8: as kaiming, all of a generalised Gaussian of shape NU (2: normal, 1: Laplace)."""

    silent_at_zero = ("B", "values")
    fixed = ("support",)

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        require_rank_fits(config.rank, in_features, out_features, name)
        self.config, self.rank = config, config.rank
        self.scale = config.alpha / config.rank
        self.support = SUPPORTS[config.support](config.density, in_features, out_features, f"{name}.support")
        self.A = nn.Parameter(torch.empty(config.rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, config.rank))
        self.values = nn.Parameter(torch.empty(self.support.values_shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.support.linear(x, self.A, self.B, self.values, self.scale, self.products)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw a fresh support, its values and the factors as `init` says."""
        self.support.reset_parameters(seed)
        factors = Factors(self.A, self.B, self.scale, self.init_std, self.name, beside=True)
        draw_factors(self.config.init, factors, seed)
        draw_uniform(self.config.init, self.values, factors.bound, seed, f"{self.name}.values")

    draw_rows = staticmethod(LowRank.draw_rows)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        return self.support.add_to(self.scale * (self.B.float() @ self.A.float()), self.values)

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        entries = SparseLowRank.count_entries(config, in_features, out_features)
        return config.rank * (out_features + in_features) + entries
