"""A sparse matrix with a fixed random support and nothing beside it: SLTrain without its low-rank part.

Static sparse training at random (arXiv 2202.02643), as a baseline of its own.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from model.linear.initial import among, draw_uniform
from model.linear.support.element import ElementSparse
from model.linear.supported import SupportedLinear
from model.schema import Frozen


class Sparse(SupportedLinear):
    """y = x W^T with W = S, whose values train on a support that is drawn once."""

    class Config(Frozen):
        """Sparse projections on a static random support, without a low-rank part."""

        name: Literal["sparse"] = "sparse"
        density: float = Field(0.3, gt=0, lt=1)
        """Part of each projection's entries that exist."""

        init: Annotated[str, among("uniform")] = "uniform"
        """How the values start, W with model.init_std: uniform, or as ggd:NU, like ggd:0.8, a generalised Gaussian of
        shape NU (2: normal, 1: Laplace)."""

        support: ClassVar[str] = "element"

    rank = 0
    silent_at_zero = ("values",)

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        self.config = config
        self.support = ElementSparse(config.density, in_features, out_features, f"{name}.support")
        self.values = nn.Parameter(torch.empty(self.support.values_shape))

    def forward(self, x: Tensor) -> Tensor:
        # The product of no rank at all: what is left of it are shapes.
        A, B = x.new_empty(0, self.in_features), x.new_empty(self.out_features, 0)
        return self.support.linear(x, A, B, self.values, 1.0)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw a fresh support, and values so that W, zeros included, has standard deviation init_std."""
        self.support.reset_parameters(seed)
        numel = self.out_features * self.in_features
        bound = self.init_std * (3 * numel / self.values.numel()) ** 0.5
        draw_uniform(self.config.init, self.values, bound, seed, f"{self.name}.values")

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        zeros = torch.zeros(self.out_features, self.in_features, device=self.values.device)
        return self.support.add_to(zeros, self.values)

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:
        return ElementSparse.count(config.density, in_features, out_features)
