"""The SLTrain linear: a low-rank product plus a sparse matrix with a fixed random support (arXiv 2406.02214)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kernels.sparse_low_rank_linear import sparse_low_rank_linear
from model.errors import UserError
from model.initialise import fill_uniform
from model.linear.base import BaseLinear
from model.linear.low_rank import require_rank_fits
from model.linear.support import draw_support, support_size
from model.schema import Frozen


class SparseLowRank(BaseLinear):
    """y = x W^T with W = scale B A + S: A (rank, in), B (out, rank), S trained at `indices`, scale = alpha / rank."""

    class Config(Frozen):
        """Sparse-plus-low-rank projections (SLTrain); the defaults are the paper's for 60M parameters."""

        name: Literal["sparse_low_rank"] = "sparse_low_rank"
        rank: int = Field(128, ge=1)
        """Inner width of the low-rank factors; at most the smaller side of every projection."""
        alpha: float = Field(32.0, gt=0)
        """Numerator of the scale alpha / rank of the low-rank product; the sparse part is not scaled."""
        density: float = Field(0.03, gt=0, lt=1)
        """Part of each projection's entries that the sparse matrix holds."""
        support: Literal["element"] = "element"
        """How the sparse entries are drawn. element: every set of single entries is equally likely."""

    indices: Tensor

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        require_rank_fits(config.rank, in_features, out_features, name)
        if in_features * out_features >= 2**31:
            raise UserError(f"{name} ({out_features} x {in_features}) has 2^31 entries or more, too many for a support")
        size = support_size(config.density, in_features, out_features)
        if size == 0:
            raise UserError(
                f"linear.density {config.density} leaves {name} ({out_features}x{in_features}) without sparse entries; "
                'raise it or set linear.name = "low_rank"'
            )
        self.scale = config.alpha / config.rank
        self.A = nn.Parameter(torch.empty(config.rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, config.rank))
        self.values = nn.Parameter(torch.empty(size))
        # Flat row-major positions in (out, in), sorted; int32 halves what int64 would add to every checkpoint.
        self.register_buffer("indices", torch.empty(size, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return sparse_low_rank_linear(x, self.A, self.B, self.values, self.indices, self.scale)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """A and values uniform in +-1/sqrt(in), B zero, a fresh support."""
        bound = self.in_features**-0.5
        fill_uniform(self.A, bound, seed, f"{self.name}.A")
        self.B.zero_()
        fill_uniform(self.values, bound, seed, f"{self.name}.values")
        self.indices.copy_(draw_support(self.values.numel(), self.out_features * self.in_features, seed, self.name))

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        weight = self.scale * (self.B.float() @ self.A.float())
        weight.view(-1).index_add_(0, self.indices, self.values.float())
        return weight

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        return config.rank * (out_features + in_features) + support_size(config.density, in_features, out_features)

    @staticmethod
    def training_flops(config: Config, in_features: int, out_features: int, tokens: int) -> int:
        """The dense matmuls, W built twice (forward and backward), and its gradient reduced to both factors."""
        numel = out_features * in_features
        return 6 * tokens * numel + 8 * numel * config.rank
