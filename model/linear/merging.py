"""Linears that change themselves between two optimizer steps, their map unchanged."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from model.linear.base import BaseLinear

Moment = Literal["exp_avg", "exp_avg_sq"]
"""Adam's mean of gradients, and of their squares."""

Reset = Callable[[Moment, Tensor], Tensor]
"""What a moment of a parameter, in fp32 and of its shape, becomes; the tensor is left as it is."""


def begin_again(moment: Moment, values: Tensor) -> Tensor:
    """No mean, and the same mean square for all entries: what Adam knows of a parameter that is now about other things.

    Zero squares would be as wrong as old ones: bias is corrected by the count of all updates, so the first steps after
    it would be several times too long.
    """
    return torch.zeros_like(values) if moment == "exp_avg" else values.mean().expand_as(values).clone()


class MergingLinear(BaseLinear):
    """A linear that moves what its parameters have learnt into a frozen matrix, and lets them begin again.

    That makes a sum of many small changes as general as a dense matrix, though each has few parameters. Who trains it
    calls `merge` after every `merge_every`-th applied update and resets moments as it says; the parameters and buffers
    keep their shapes.
    """

    merge_every: int
    """Applied updates from one merge to the next."""
    busiest: int = 1
    """Number of a merge that takes most memory."""

    @abstractmethod
    def merge(self, seed: int, index: int) -> dict[str, Reset]:
        """Change parameters and buffers in place, the map unchanged up to rounding; return what becomes of moments.

        By own parameter's name; moments of others stay. One that resets none has changed each number by itself, so that
        ranks that agreed do so still. `index` counts the merges from 1; what is drawn comes from
        (seed, the linear's name, index).
        """
