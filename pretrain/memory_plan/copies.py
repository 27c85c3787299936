"""Host memory for the copies from which checkpoints are written in the background (checkpoint.background)."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from pretrain.checkpoint.host_copies import room_for
from pretrain.checkpoint.save import WholeTensors, numbered
from pretrain.config.schema import Config
from pretrain.engine.merging import MOMENTS
from pretrain.loop.optional import reason
from pretrain.machine.distributed import World
from pretrain.machine.memory import host_bytes, readable
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.memory import plan_stage
from pretrain.memory_plan.rest import Silent, shape_of
from pretrain.memory_plan.trace import META, tracing
from pretrain.optim import build_optimizer
from pretrain.optim.own_optimizer import OwnOptimizer

PART = 0.8
"""What a run may plan to take of a machine's memory; the rest is for Python, libraries, files on their way to the disk
and whoever else is there. A machine without memory kills a run; a save that training waits for costs seconds."""


def copied_bytes(tensors: WholeTensors, world: World) -> int:
    """Bytes of the copies of a rank of `world`."""
    return sum(room_for(size) for index, _, size, _ in numbered(tensors) if index % world.size == world.rank)


def planned_copies(config: Config, world_size: int) -> int:
    """Bytes of the copies of the process that has most, in the growth stage that has most; 0 in the foreground."""
    if not config.checkpoint.background:
        return 0
    worlds = [World(rank, world_size, META) for rank in range(world_size)]
    return max(copied_bytes(_tensors(stage.config), world) for stage in config.stages for world in worlds)


def _tensors(config: Config) -> WholeTensors:
    """What a checkpoint of one stage holds, by size and in the order of `Engine.whole_tensors`."""
    model = shape_of(config)
    names, zero_stage = model.state_dict().keys(), config.parallel.zero_stage
    sizes = [buffer.nbytes for name, buffer in model.named_buffers() if name in names]
    weights = [4 * p.numel() if zero_stage else p.nbytes for p in model.parameters()]
    sizes += weights
    with tracing(Ledger(), cuda=False):
        optimizer = None if zero_stage else build_optimizer(config.optimizer, model, exchange=Silent(0, 1))
        if isinstance(optimizer, OwnOptimizer):
            sizes += [tensor.nbytes for _, _, tensor, _ in optimizer.tensors()] + [8 for _ in optimizer.counts]
            optimizer.unhook()
        else:
            sizes += [size for size in weights for _ in MOMENTS]
    return [("", size, partial(torch.empty, size, dtype=torch.uint8, device=META)) for size in sizes]


def lacks_room(stage: Config, world: World, kernels: dict[str, Any], copies: Sequence[int]) -> str | None:
    """Say why this machine's memory has no room for the `copies` (bytes by rank) of its ranks; None where it has.

    A CPU run has its tensors there too, a GPU run what it offloads. `stage` is the configuration of the stage that
    trains, its linears computing as `kernels` records.
    """
    cuda, processes = world.device.type == "cuda", int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        plan = plan_stage(stage, world.size, cuda=cuda, kernels=kernels)
    except Exception as error:  # a plan is a description: a run whose step it cannot follow trains all the same
        return f"whether a copy of one has room is not known ({reason(error)})"
    first = world.rank // processes * processes
    taken, copied = processes * (plan.host if cuda else plan.total), sum(copies[first : first + processes])
    has = host_bytes()
    if taken + copied <= PART * has:
        return None
    return (
        f"a copy of one takes {readable(copied, binary=True)}, the run {readable(taken, binary=True)} and this machine "
        f"has {readable(has, binary=True)} (checkpoint.background = false chooses it)"
    )
