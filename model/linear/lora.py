"""A frozen dense matrix and a low-rank change of it that trains (LoRA, arXiv 2106.09685)."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from model.linear.base import BaseLinear
from model.linear.low_rank import require_rank_fits
from model.linear.ranks import RankTable
from model.schema import Frozen
from model.seeding import fill_normal, fill_uniform


class Lora(BaseLinear):
    """y = x W0^T + scale (x A^T) B^T with W0 (out, in) frozen, A (rank, in), B (out, rank) and scale = alpha / rank.

    W0 is a buffer, in the precision of the parameters: it has neither a gradient nor moments. Where it is what a dense
    model has learnt (`sparlow import --linear lora`), this is fine-tuning; where it is drawn, the papers' baseline.
    """

    class Config(Frozen):
        """A frozen dense matrix plus alpha / rank B A, which trains."""

        name: Literal["lora"] = "lora"
        rank: int = Field(128, ge=1)
        """Inner width of the factors; at most the smaller side of every projection."""
        ranks: RankTable = ()
        """Ranks of linears by patterns of their names, in place of `rank`; the last pattern that matches decides."""
        alpha: float = Field(32.0, gt=0)
        """Numerator of the scale alpha / rank of the product."""

    silent_at_zero = ("weight", "B")

    weight: Tensor

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        require_rank_fits(config.rank, in_features, out_features, name)
        self.scale = config.alpha / config.rank
        self.register_buffer("weight", torch.empty(out_features, in_features))
        self.A = nn.Parameter(torch.empty(config.rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        # Scaling B costs less than scaling the output: out * rank numbers instead of tokens * out.
        change = F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype) * self.scale)
        return F.linear(x, self.weight.to(x.dtype)).add_(change)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw W0 as a dense linear draws its weight, and A uniform in +-1/sqrt(in); B is zero."""
        fill_normal(self.weight, self.init_std, seed, f"{self.name}.weight")
        fill_uniform(self.A, self.in_features**-0.5, seed, f"{self.name}.A")
        self.B.zero_()

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        return torch.addmm(self.weight.float(), self.B.float(), self.A.float(), alpha=self.scale)

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        return config.rank * (out_features + in_features)

    @staticmethod
    def count_frozen(config: Config, in_features: int, out_features: int) -> int:
        return out_features * in_features
