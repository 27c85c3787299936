"""Growth in depth of a model's state, one tensor at a time."""

import re
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from model.errors import UserError
from model.growth.plan import GrowthPlan
from model.linear import LINEARS, LinearConfig
from model.linear.support.base import check_supports

OUTPUTS = ("attention.o_proj", "feed_forward.down_proj")
"""What of a block writes to the residual stream."""

LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def grow_tensors(
    names: Iterable[str], read: Callable[[str], Tensor], plan: GrowthPlan, linear: LinearConfig
) -> Iterator[tuple[str, Tensor]]:
    """The grown model's state as (name, tensor): every tensor of every block from its source, the rest copied once.

    `names` are those of the small model's state_dict, supports included, and `read` returns one of its tensors. A
    tensor is read for each of its copies and let go before the next one, so no second model is ever in memory. What
    `read` returns is handed on: it must own its memory, or the receiver must copy. UserError when the state has not
    the layers that the plan grows.
    """
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
        yield name, read(name)
    silent_at_zero = LINEARS[linear.name].silent_at_zero
    zeroed = {f"{projection}.{parameter}" for projection in OUTPUTS for parameter in silent_at_zero}
    for layer, source in enumerate(plan.source):
        for part in blocks[source]:
            # No name is bound to the tensor: the generator would keep it while the next one is read.
            if layer in plan.silent and part in zeroed:
                yield f"layers.{layer}.{part}", torch.zeros_like(read(f"layers.{source}.{part}"))
            else:
                yield f"layers.{layer}.{part}", read(f"layers.{source}.{part}")


@torch.no_grad()
def copy_into(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Fill every parameter and buffer of `model` from `tensors`, cast to its dtype; UserError unless they fit it."""
    state = model.state_dict()
    for name, tensor in tensors:
        target = state.pop(name, None)
        if target is None or target.shape != tensor.shape:
            expected = "none" if target is None else tuple(target.shape)
            raise UserError(f"growth: {name} has shape {tuple(tensor.shape)}, the grown model's is {expected}")
        target.copy_(tensor)
        del tensor
    if state:
        raise UserError(f"growth: the small model has nothing for {_short(list(state))}")
    check_supports(model)


def _short(items: list) -> str:
    return ", ".join(map(str, items[:4])) + (", …" if len(items) > 4 else "") or "none"
