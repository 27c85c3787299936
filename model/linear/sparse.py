"""A sparse matrix with a fixed random support and nothing beside it: SLTrain without its low-rank part.

Static sparse training at random (arXiv 2202.02643), as a baseline of its own.
"""

from collections.abc import Iterable
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
        """Part of the entries of a block's projections that exist."""
        densities: Literal["uniform", "erdos_renyi"] = "uniform"
        """How they are shared out. uniform: the same part of each projection. erdos_renyi: parts in proportion to
        (in + out) / (in out), at most 1, so that narrow projections keep more (arXiv 1707.04780)."""
        init: Annotated[str, among("uniform")] = "uniform"
        """How the values start, W with model.init_std: uniform, or as ggd:NU, like ggd:0.8, a generalised Gaussian of
        shape NU (2: normal, 1: Laplace)."""

        support: ClassVar[str] = "element"

        def density_of(self, in_features: int, out_features: int) -> float:
            """Return the part of the entries of a projection of this shape that exist."""
            if self.densities != "uniform":
                raise TypeError("the projections beside it decide the density of this one; see in_block")
            return self.density

    class Shared(Config):
        """A Config in a block, whose shapes have decided `unit`."""

        unit: float
        """Entries for every row and every column of a projection."""

        def density_of(self, in_features: int, out_features: int) -> float:
            return min(1.0, self.unit * (in_features + out_features) / (in_features * out_features))

    rank = 0
    silent_at_zero = ("values",)

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        self.config, density = config, config.density_of(in_features, out_features)
        self.support = ElementSparse(density, in_features, out_features, f"{name}.support")
        self.values = nn.Parameter(torch.empty(self.support.values_shape))

    def forward(self, x: Tensor) -> Tensor:
        # The product of no rank at all: what is left of it are shapes.
        A, B = x.new_empty(0, self.in_features), x.new_empty(self.out_features, 0)
        return self.support.linear(x, A, B, self.values, 1.0, self.products)

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
    def in_block(config: Config, shapes: Iterable[tuple[int, int]]) -> Config:
        """Return `config`, or for erdos_renyi a Shared one with which the block has `density` of its entries."""
        if config.densities == "uniform":
            return config
        return Sparse.Shared(**dict(config), unit=erdos_renyi_unit(config.density, shapes))

    @staticmethod
    def count_entries(config: Config, in_features: int, out_features: int) -> int:
        return ElementSparse.count(config.density_of(in_features, out_features), in_features, out_features)

    count_parameters = count_entries


def erdos_renyi_unit(density: float, shapes: Iterable[tuple[int, int]]) -> float:
    """Return the c with which matrices (in, out) of min(in out, c (in + out)) entries have the part `density` of all.

    Those that get more entries than they have become full, and leave the others the rest.
    """
    open_shapes = list(shapes)
    entries = density * sum(n_in * n_out for n_in, n_out in open_shapes)
    while True:
        unit = entries / sum(n_in + n_out for n_in, n_out in open_shapes)
        full = [(n_in, n_out) for n_in, n_out in open_shapes if unit * (n_in + n_out) >= n_in * n_out]
        if not full:
            return unit
        entries -= sum(n_in * n_out for n_in, n_out in full)
        open_shapes = [shape for shape in open_shapes if shape not in full]
