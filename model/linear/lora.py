"""A frozen dense matrix and a low-rank change of it that trains (LoRA, arXiv 2106.09685)."""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from model.linear.base import BaseLinear
from model.linear.initial import Factors, among, draw_factors, draw_normal
from model.linear.low_rank import LowRank, require_rank_fits
from model.linear.ranks import RankTable
from model.schema import Frozen


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
        init: Annotated[str, among("kaiming", "spectral", "orthogonal")] = "kaiming"
        """How the factors start; W0 gives up their product. kaiming: A uniform in +-1/sqrt(in), B zero. spectral: the
        largest singular values of W0 train (PiSSA). orthogonal: neither is zero, but their product. ggd:NU, as in
        ggd:0.8: as kaiming, and W0, of a generalised Gaussian of shape NU (2: normal, 1: Laplace)."""

    silent_at_zero = ("weight", "B")

    weight: Tensor

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        require_rank_fits(config.rank, in_features, out_features, name)
        self.config, self.scale = config, config.alpha / config.rank
        self.register_buffer("weight", torch.empty(out_features, in_features))
        self.A = nn.Parameter(torch.empty(config.rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        # Scaling B costs less than scaling the output: out * rank numbers instead of tokens * out.
        change = F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype) * self.scale)
        return change.add_(self.multiply(x, self.weight))

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw W0 as a dense linear draws its weight, and the factors as `init` says."""
        draw_normal(self.config.init, self.weight, self.init_std, seed, f"{self.name}.weight")
        self._begin(seed, None)

    @torch.no_grad()
    def take(self, weight: Tensor, seed: int) -> None:
        """Begin with the map `weight` (out, in), the factors as `init` says."""
        self.weight.copy_(weight)
        self._begin(seed, weight)

    def _begin(self, seed: int, dense: Tensor | None) -> None:
        factors = Factors(self.A, self.B, self.scale, self.init_std, self.name, beside=True, dense=dense)
        draw_factors(self.config.init, factors, seed)
        if self.config.init == "spectral":
            self.weight.copy_(self.weight.float() - self.scale * (self.B.float() @ self.A.float()))

    draw_rows = staticmethod(LowRank.draw_rows)

    @staticmethod
    def multiplies_matrix(config: Any) -> bool:
        return True

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        return torch.addmm(self.weight.float(), self.B.float(), self.A.float(), alpha=self.scale)

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        return config.rank * (out_features + in_features)

    @staticmethod
    def count_frozen(config: Config, in_features: int, out_features: int) -> int:
        return out_features * in_features
