"""Merges of linears that are due after an update, alike on every rank.

DeepSpeed sends rank 0's parameters to the others when it begins, and no buffers. A frozen matrix that differed between
ranks in a last digit, as kinds of processors may round differently, would let their models part for good: so they
have rank 0's, from the beginning and after every merge.
"""

from collections.abc import Iterable, Iterator
from typing import get_args

import torch.distributed as dist
from torch import Tensor, nn

from model.linear.merging import MergingLinear, Moment, Reset
from pretrain.machine.distributed import World

MOMENTS: tuple[Moment, ...] = get_args(Moment)
"""What element-wise AdamW keeps of every parameter."""


def merging_linears(model: nn.Module) -> list[MergingLinear]:
    """Linears that change themselves between updates."""
    return [module for module in model.modules() if isinstance(module, MergingLinear)]


def merge_due(linears: Iterable[MergingLinear], updates: int, seed: int, world: World) -> Iterator[tuple[str, Reset]]:
    """Merge what is due after `updates` applied updates; yields what becomes of moments, by the parameter's full name.

    Collective. Merge k of a linear is that after k merge_every updates, so a run that goes on from a checkpoint merges
    as one that never stopped.
    """
    for linear in linears:
        if updates % linear.merge_every:
            continue
        resets = linear.merge(seed, updates // linear.merge_every)
        if resets:
            take_from_first((tensor.detach() for tensor in linear.state_dict().values()), world)
        yield from ((f"{linear.name}.{own}", reset) for own, reset in resets.items())


def reset_moments(state: dict[str, Tensor], reset: Reset) -> None:
    """Let `reset` change both moments in what torch's AdamW keeps of a parameter."""
    for key in MOMENTS:
        state[key].copy_(reset(key, state[key].float()))


def take_from_first(tensors: Iterable[Tensor], world: World) -> None:
    """Overwrite `tensors` with rank 0's."""
    for tensor in tensors if world.size > 1 else ():
        dist.broadcast(tensor, src=0)


def frozen_matrices(model: nn.Module) -> Iterator[Tensor]:
    """The buffers of `model` that are saved and hold no integers."""
    kept = model.state_dict().keys()
    yield from (buffer for name, buffer in model.named_buffers() if name in kept and buffer.is_floating_point())
