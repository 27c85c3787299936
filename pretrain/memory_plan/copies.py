"""Host memory for the copies from which checkpoints are written in the background (checkpoint.background)."""

import os
from collections.abc import Sequence
from typing import Any

from pretrain.checkpoint.host_copies import room_for
from pretrain.checkpoint.save import WholeTensors, numbered
from pretrain.config.schema import Config
from pretrain.loop.optional import reason
from pretrain.machine.distributed import World
from pretrain.machine.memory import host_bytes, readable
from pretrain.memory_plan.memory import plan_stage

PART = 0.8
"""What a run may plan to take of a machine's memory; the rest is for Python, libraries, files on their way to the disk
and whoever else is there. A machine without memory kills a run; a save that training waits for costs seconds."""


def copied_bytes(tensors: WholeTensors, world: World) -> int:
    """Bytes of the copies of a rank of `world`."""
    return sum(room_for(size) for index, _, size, _ in numbered(tensors) if index % world.size == world.rank)


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
