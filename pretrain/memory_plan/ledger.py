"""What is alive at a moment of a training step, by item, and the worst moment of each phase."""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

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
    "host",
]
"""weights: parameters as the model computes with them. masters: fp32 copies that ZeRO updates. support: places of
sparse entries, and what is derived from them. moments: the optimizer's state but its bases. projections: bases.
accumulators: projected gradients, and gradients that ZeRO sums elsewhere than in the parameters. kept_weights: what
linears keep over micro-steps, or share: W of sparse-plus-low-rank ones, its summed gradient, the memory that 8-bit
weights are read into. weight_copies: weights in the precision of the computation, and what else is made of weights
alone. activations: all else that the forward pass keeps for the backward pass. loss: the output head's logits and
gradients. temporaries: alive within one operation or layer. reduction: buffers of communication. host: not in the
device's memory, and not counted."""

Phase = Literal["forward", "backward", "update"]

PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Moment:
    """Bytes of everything alive, in all and by item."""

    total: int
    items: dict[str, int]


class Span:
    """The life of one piece of memory. What it is may be known only later: the last word counts for all of it."""

    __slots__ = ("item", "size")

    def __init__(self, item: Item, size: int):
        self.item, self.size = item, size


class Ledger:
    """Writes down bytes as they are taken and freed, of tensors and of what is known by arithmetic alone."""

    def __init__(self) -> None:
        self._events: list[tuple[Span, int]] = []
        self._phases: list[tuple[int, Phase]] = []
        self._live: dict[int, Span] = {}

    def begin(self, phase: Phase) -> None:
        self._phases.append((len(self._events), phase))

    def forget(self) -> None:
        """The step so far was to make what stays: the phases begin anew."""
        self._phases.clear()

    def take(self, item: Item, size: int) -> None:
        self._events.append((Span(item, size), size))

    def free(self, item: Item, size: int) -> None:
        self._events.append((Span(item, size), -size))

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

    def see(self, tensor: Tensor, item: Item) -> None:
        """Memory of `tensor` that is new is `item`, and alive until the last tensor in it is gone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        span = self._live[key] = Span(item, storage.nbytes())
        self._events.append((span, span.size))
        weakref.finalize(storage, self._end, key)

    def item(self, tensor: Tensor) -> Item | None:
        """What the memory of `tensor` is, where it was seen."""
        span = self._live.get(tensor.untyped_storage()._cdata)
        return span.item if span else None

    def mark(self, tensors: Iterable[Tensor], item: Item) -> None:
        """The memory of `tensors` is `item`, and has been from its beginning."""
        for tensor in tensors:
            self.see(tensor, item)
            self._live[tensor.untyped_storage()._cdata].item = item

    def settle(self, old: Item, new: Item) -> None:
        """What is `old` and alive turns out to be `new`."""
        for span in self._live.values():
            if span.item == old:
                span.item = new

    def drop(self, tensor: Tensor) -> None:
        """The memory of `tensor` counts no more: somebody else will write down what becomes of it."""
        span = self._live[tensor.untyped_storage()._cdata]
        self._events.append((span, -span.size))
        span.size = 0

    def alive(self, item: Item) -> list[int]:
        """Bytes of each living tensor that is `item`."""
        return [span.size for span in self._live.values() if span.item == item]

    def moments(self) -> dict[Phase, Moment]:
        """The worst moment of each phase since `forget`."""
        total, worst = 0, dict[Phase, tuple[int, int]]()
        phase: Phase | None = None

        def look(index: int) -> None:
            if phase is not None and (phase not in worst or total > worst[phase][0]):
                worst[phase] = (total, index)

        begins = iter(self._phases)
        start, following = next(begins)
        for index in range(len(self._events) + 1):  # after `index` events
            if index:
                span, size = self._events[index - 1]
                total += size if span.item != "host" else 0
                look(index)
            while index == start:
                phase = following
                look(index)
                start, following = next(begins, (-1, following))
        return {phase: Moment(total, self._items(index)) for phase, (total, index) in worst.items()}

    def _items(self, index: int) -> dict[str, int]:
        """What was alive after `index` events."""
        items: Counter[str] = Counter()
        for span, size in self._events[:index]:
            items[span.item] += size
        return {item: size for item, size in items.items() if size and item != "host"}

    def _end(self, key: int) -> None:
        span = self._live.pop(key)
        self._events.append((span, -span.size))
