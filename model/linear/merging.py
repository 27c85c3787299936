"""Linears that change themselves between two optimizer steps, their map unchanged."""

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from model.linear.base import BaseLinear

Reset = Callable[[Tensor], Tensor]
"""What a moment of a parameter, in fp32 and of its shape, becomes; its argument is left as it is."""


class MergingLinear(BaseLinear):
    """A linear that moves what its parameters have learnt into a frozen matrix, and lets them begin again.

    That makes a sum of many small changes as general as a dense matrix, though each has few parameters. Who trains it
    calls `merge` after every `merge_every`-th applied update and resets moments as it says; the parameters and buffers
    keep their shapes.
    """

    merge_every: int
    """Applied updates from one merge to the next."""

    @abstractmethod
    def merge(self, seed: int, index: int) -> dict[str, Reset]:
        """Change parameters and buffers in place, the map unchanged up to rounding; return what becomes of moments.

        By own parameter's name; moments of others stay. `index` counts the merges from 1; what is drawn comes from
        (seed, the linear's name, index).
        """
