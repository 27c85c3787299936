"""The planned memory of a run that is open, and what became of it."""

import os
from collections.abc import Iterator
from typing import Any

from model.errors import UserError
from pretrain.config.schema import Config, Stage
from pretrain.loop.state import TrainState
from pretrain.machine.distributed import World
from pretrain.machine.memory import gpu_bytes, host_bytes, peak_bytes, readable
from pretrain.memory_plan.memory import MemoryPlan, plan_stage

TOLERANCE = 0.1
"""Relative difference of plan and measurement from which on it is called out."""


def planned_bytes(stage: Stage, state: TrainState, world: World) -> int:
    """Planned peak of live tensors in a process of `world`, on its kind of device, with the kernels chosen."""
    return _plan(stage, state, world).total


def planned_moment(stage: Stage, state: TrainState, world: World) -> dict[str, Any]:
    """What `planned_bytes` is made of: bytes by item, the part of a step they are of, and those in host memory."""
    found = _plan(stage, state, world)
    return {"total": found.total, "phase": found.worst, "items": found.items, "host": found.host}


def _plan(stage: Stage, state: TrainState, world: World) -> MemoryPlan:
    return plan_stage(stage.config, world.size, cuda=world.device.type == "cuda", kernels=state.kernels)


def require_memory(config: Config, world: World) -> None:
    """UserError when a stage of the run cannot fit this GPU, or the host what is kept there: found at the start, not at
    a growth days later."""
    if world.device.type != "cuda" or not config.guard.memory:
        return
    has = gpu_bytes(world.device)
    for stage in config.stages:
        plan = plan_stage(stage.config, world.size, cuda=True, card_bytes=has)
        require_host_memory(stage.config, plan.host)
        planned = plan.total
        if planned > has:
            raise UserError(
                f"the model of {stage.config.model.n_layers} layers needs {planned / 2**30:.1f} GiB of tensors in a "
                f"process, this GPU has {has / 2**30:.1f}; `sparlow plan CONFIG --gpu-memory {has // 2**30}GiB` names "
                "changes that fit, guard.memory = false tries it all the same"
            )


def require_host_memory(config: Config, planned: int) -> None:
    """UserError when the processes on this machine keep more bytes in its memory than it has, `planned` in each."""
    processes, has = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), host_bytes()
    if processes * planned <= has:
        return
    moved = {
        "train.offload_activations = false": config.train.offload_activations,
        'optimizer.accumulators = "device"': getattr(config.optimizer, "accumulators", "device") == "host",
        'parallel.offload = "none"': config.parallel.offload != "none",
    }
    fixes = " or ".join(fix for fix, kept_there in moved.items() if kept_there)
    raise UserError(
        f"the run keeps {processes * planned / 2**30:.1f} GiB in host memory and this machine has {has / 2**30:.1f}: "
        f"set {fixes}, or lower train.micro_batch_size; guard.memory = false tries it all the same"
    )


def compare(planned: int, world: World) -> Iterator[str]:
    """What to say at the end of a run; nothing on a CPU, where the process's size is another quantity."""
    measured = peak_bytes(world.device)
    if measured is None:
        return
    yield f"peak memory {readable(measured, binary=True)}, planned {readable(planned, binary=True)}"
    if abs(measured - planned) > TOLERANCE * planned:
        yield f"WARNING: the plan is {measured / planned - 1:+.0%} off; `sparlow plan` misjudges this configuration"
