"""What is alive at a moment of a training step, by item, and the worst moment of each phase."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Item = Literal[
    "weights",
    "masters",
    "support",
    "gradients",
    "moments",
    "projections",
    "accumulators",
    "kept_weights",
    "weight_copies",
    "activations",
    "loss",
    "temporaries",
    "reduction",
]
"""weights: parameters as the model computes with them. masters: fp32 copies that ZeRO updates. support: places of
sparse entries, and what is derived from them. moments: the optimizer's state but its bases. projections: bases.
accumulators: projected gradients, and gradients that ZeRO sums elsewhere than in the parameters. kept_weights: W of
sparse-plus-low-rank linears that is kept, and its summed gradient. weight_copies: weights in the precision of the
computation, kept for the backward pass. activations: all else that the forward pass keeps for the backward pass. loss:
the output head's logits and gradients. temporaries: alive within one operation or layer. reduction: buffers of
communication."""

Phase = Literal["forward", "backward", "update"]


@dataclass(frozen=True)
class Moment:
    """Bytes of everything alive, in all and by item."""

    total: int
    items: dict[str, int]


class Ledger:
    """Counts bytes as they are taken and freed."""

    def __init__(self) -> None:
        self.phase: Phase = "forward"
        self.peaks: dict[Phase, Moment] = {}
        self._live: Counter[str] = Counter()
        self._total = 0

    def take(self, item: Item, size: int) -> None:
        self._live[item] += size
        self._total += size
        worst = self.peaks.get(self.phase)
        if worst is None or self._total > worst.total:
            self.peaks[self.phase] = Moment(self._total, {name: n for name, n in self._live.items() if n})

    def free(self, item: Item, size: int) -> None:
        self._live[item] -= size
        self._total -= size
        assert self._live[item] >= 0, f"{item} freed twice"

    def move(self, size: int, old: Item, new: Item) -> None:
        """A buffer that exists gets another meaning."""
        self._live[old] -= size
        self._live[new] += size

    @contextlib.contextmanager
    def during(self, size: int, item: Item = "temporaries") -> Iterator[None]:
        """Inside, `size` bytes are alive."""
        self.take(item, size)
        yield
        self.free(item, size)

    def touch(self, size: int, item: Item = "temporaries") -> None:
        """`size` bytes come and go."""
        self.take(item, size)
        self.free(item, size)

    def alive(self, item: Item) -> int:
        return self._live[item]

    def begin(self, phase: Phase) -> None:
        self.phase = phase
        self.take("temporaries", 0)
