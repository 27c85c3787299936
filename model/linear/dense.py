"""The ordinary linear: one dense matrix."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.linear.base import BaseLinear
from model.schema import Frozen
from model.seeding import fill_normal


class Dense(BaseLinear):
    """y = x W^T with W (out, in)."""

    class Config(Frozen):
        """Dense projections, as in LLaMA."""

        name: Literal["dense"] = "dense"

    projectable = ("weight",)
    silent_at_zero = ("weight",)

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))

    def reset_parameters(self, seed: int) -> None:
        fill_normal(self.weight, self.init_std, seed, f"{self.name}.weight")

    def dense_weight(self) -> Tensor:
        return self.weight.detach().float()

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        return out_features * in_features
