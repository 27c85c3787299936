"""The LoRA linear whose product is merged into the frozen matrix again and again (ReLoRA, arXiv 2307.05695)."""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from model.linear.initial import among
from model.linear.lora import Lora
from model.linear.merging import MergingLinear, Moment, Reset
from model.linear.ranks import RankTable
from model.schema import Frozen
from model.seeding import fill_uniform, generator


class ReLora(Lora, MergingLinear):
    """y = x W0^T + scale (x A^T) B^T; a merge makes W0 <- W0 + scale B A, draws A anew and makes B zero.

    Of the moments of A and B a merge keeps a part, as `reset` says, and the optimizer's count of steps, by which bias
    is corrected. A learning rate that falls to zero there and rises again goes with it: schedule.name =
    "cosine_restarts" with restart_every = merge_every.
    """

    class Config(Frozen):
        """A frozen dense matrix plus alpha / rank B A, which trains and is merged into it at intervals (ReLoRA)."""

        name: Literal["relora"] = "relora"
        rank: int = Field(128, ge=1)
        """Inner width of the factors; at most the smaller side of every projection."""
        ranks: RankTable = ()
        """Ranks of linears by patterns of their names, in place of `rank`; the last pattern that matches decides."""
        alpha: float = Field(32.0, gt=0)
        """Numerator of the scale alpha / rank of the product."""
        init: Annotated[str, among("kaiming", "spectral", "orthogonal")] = "kaiming"
        """How the factors start, as for lora; after a merge, A is uniform in +-1/sqrt(in) and B zero."""
        merge_every: int = Field(1000, ge=1)
        """Applied updates from one merge to the next."""
        reset: Literal["magnitude", "random", "zero"] = "magnitude"
        """Which entries of the factors' moments a merge makes zero. magnitude: those of each moment that are smallest.
        random: the same ones of both, drawn. zero: all."""
        reset_ratio: float = Field(0.9, gt=0, lt=1)
        """Part of the entries that become zero with reset = "magnitude" or "random"."""

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(config, in_features, out_features, name, init_std)  # type: ignore[arg-type]
        self.merge_every, self.reset, self.reset_ratio = config.merge_every, config.reset, config.reset_ratio

    @torch.no_grad()
    def merge(self, seed: int, index: int) -> dict[str, Reset]:
        """Merge in fp32, rounded once to what W0 is kept in, and begin again with a zero product.

        A is not zero, so B receives gradient in the next step: were both, neither would ever receive any.
        """
        self.weight.copy_(self.dense_weight())
        fill_uniform(self.A, self.in_features**-0.5, seed, f"{self.name}.A.merge_{index}")
        self.B.zero_()
        return {own: self._reset_of(seed, f"{self.name}.{own}", index) for own in ("A", "B")}

    def _reset_of(self, seed: int, name: str, index: int) -> Reset:
        if self.reset == "random":
            return partial(_drop_drawn, self.reset_ratio, seed, f"{name}.merge_{index}")
        return partial(_drop_small, self.reset_ratio) if self.reset == "magnitude" else _drop_all


def _drop_all(moment: Moment, values: Tensor) -> Tensor:
    return torch.zeros_like(values)


def _drop_drawn(ratio: float, seed: int, name: str, moment: Moment, values: Tensor) -> Tensor:
    drawn = torch.rand(values.shape, generator=generator(seed, "reset", name))
    return values * (drawn >= ratio).to(values.device)


def _drop_small(ratio: float, moment: Moment, values: Tensor) -> Tensor:
    """Zero `ratio` of the entries, and those that are as small as the largest of these."""
    size = values.abs()
    # Not kthvalue, which train.deterministic refuses on a GPU.
    largest = size.flatten().sort().values[max(1, round(ratio * values.numel())) - 1]
    return values * (size > largest)
