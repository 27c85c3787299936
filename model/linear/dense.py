"""The ordinary linear: one dense matrix."""

from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from model.linear.base import BaseLinear
from model.linear.initial import among, draw_normal
from model.schema import Frozen


class Dense(BaseLinear):
    """y = x W^T with W (out, in)."""

    class Config(Frozen):
        """Dense projections, as in LLaMA."""

        name: Literal["dense"] = "dense"
        init: Annotated[str, among("normal")] = "normal"
        """How the matrix starts, with model.init_std: normal, or as ggd:NU, like ggd:0.8, a generalised Gaussian of
        shape NU (2: normal, 1: Laplace)."""

    projectable = ("weight",)
    silent_at_zero = ("weight",)

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        self.config = config
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight)

    def reset_parameters(self, seed: int) -> None:
        draw_normal(self.config.init, self.weight, self.init_std, seed, f"{self.name}.weight")

    @staticmethod
    def multiplies_matrix(config: Any) -> bool:
        return True

    def dense_weight(self) -> Tensor:
        return self.weight.detach().float()

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        return out_features * in_features
