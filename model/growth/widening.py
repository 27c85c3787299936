"""How a model grows in width, by what a run says of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig
from model.growth.silent_width import add_width
from model.growth.tensors import GrownTensor
from model.growth.width import SHARE_SPREAD, copy_width
from model.linear import LinearConfig

Width = Literal["copy", "zero"]


@dataclass(frozen=True)
class Widening:
    """By copies of everything, or by heads and units that begin silent."""

    how: Width = "copy"
    share_spread: float = SHARE_SPREAD
    """For copies: how unevenly they share a weight."""

    def grow(
        self, tensors: Iterable[GrownTensor], small: ModelConfig, large: ModelConfig, linear: LinearConfig, seed: int
    ) -> Iterator[GrownTensor]:
        """Turn the state of a model of the widths of `small` into one of those of `large`, the function unchanged."""
        if self.how == "zero":
            return add_width(tensors, small, large, linear, seed)
        return copy_width(tensors, small, large, linear, seed, self.share_spread)
