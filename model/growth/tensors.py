"""Growth in depth of a model's state, one linear at a time."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from model.errors import UserError
from model.growth.plan import GrowthPlan
from model.linear import LINEARS, LinearConfig

OUTPUTS = ("attention.o_proj", "feed_forward.down_proj")
"""What of a block writes to the residual stream."""

LAYER = re.compile(r"layers\.(\d+)\.(.+)")


class GrownTensor(NamedTuple):
    """A tensor of the grown model and what of it is new; the rest is copied. Not to be written to: copies share it."""

    name: str
    tensor: Tensor
    zeroed: int = 0
    """Bytes that start at zero."""
    drawn: int = 0
    """Bytes that are drawn anew."""


def grow_tensors(
    names: Iterable[str], read: Callable[[str], Tensor], plan: GrowthPlan, linear: LinearConfig
) -> Iterator[GrownTensor]:
    """Yield the grown model's state: every tensor of every block from its source, the rest copied once.

    `names` are those of the small model's state_dict, supports included, or of its optimizer's state
    (<parameter>.<state>), and `read` returns one of the tensors. Each is read once: those of one linear are held until
    all copies of it are made, and let go before the next; so they follow each other, copy by copy. UserError when the
    state has not the layers that the plan grows, or the linears cannot start as silent as it asks.
    """
    require_silenceable(linear, plan)
    blocks: dict[int, list[str]] = {}
    rest = []
    for name in names:
        if match := LAYER.fullmatch(name):
            blocks.setdefault(int(match[1]), []).append(match[2])
        else:
            rest.append(name)
    if sorted(blocks) != list(range(plan.small)):
        raise UserError(
            f"growth.factor: the model to grow has layers {_short(sorted(blocks))}, not 0 to {plan.small - 1}; "
            "it is another model's checkpoint"
        )
    for name in rest:
        yield GrownTensor(name, read(name))
    silent_at_zero = LINEARS[linear.name].silent_at_zero
    zeroed = {f"{projection}.{parameter}" for projection in OUTPUTS for parameter in silent_at_zero}
    copies = {source: [i for i, origin in enumerate(plan.source) if origin == source] for source in range(plan.small)}
    for source, layers in copies.items():
        for _, parts in groupby(sorted(blocks[source]) if layers else (), key=lambda part: part.split(".")[:2]):
            held = {part: read(f"layers.{source}.{part}") for part in parts}
            for layer in layers:
                for part, tensor in held.items():
                    name = f"layers.{layer}.{part}"
                    if layer in plan.silent and part in zeroed:
                        yield GrownTensor(name, torch.zeros_like(tensor), zeroed=tensor.nbytes)
                    else:
                        yield GrownTensor(name, tensor)
            del held, tensor  # before the next ones are read


def require_silenceable(linear: LinearConfig, plan: GrowthPlan) -> None:
    """UserError for layers that start silent where the linears have no zero map from which they could learn."""
    if plan.silent and not LINEARS[linear.name].silent_at_zero:
        raise UserError(
            'growth.operator = "zero" and growth.function_preserving start layers at zero, from where linear.name = '
            f'"{linear.name}" would never move; set another operator and function_preserving = false, or other linears'
        )


def fitting(tensors: Iterable[GrownTensor], state: dict[str, Tensor]) -> Iterator[GrownTensor]:
    """Yield `tensors` as they are; UserError unless their names and shapes are those of `state`, the grown model's."""
    missing = dict(state)
    for item in tensors:
        wanted = missing.pop(item.name, None)
        if wanted is None or wanted.shape != item.tensor.shape:
            expected = "none" if wanted is None else tuple(wanted.shape)
            raise UserError(
                f"growth: {item.name} has shape {tuple(item.tensor.shape)}, the grown model's is {expected}"
            )
        yield item
        del item
    if missing:
        raise UserError(f"growth: the small model has nothing for {_short(list(missing))}")


def _short(items: list) -> str:
    return ", ".join(map(str, items[:4])) + (", …" if len(items) > 4 else "") or "none"
