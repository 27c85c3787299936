"""The planned memory of a run that is open, and what became of it."""

from collections.abc import Iterator

from pretrain.distributed import World
from pretrain.growth.stages import Stage
from pretrain.memory import peak_bytes
from pretrain.memory_plan.memory import plan_stage
from pretrain.state import TrainState

TOLERANCE = 0.1
"""Relative difference of plan and measurement from which on it is called out."""


def planned_bytes(stage: Stage, state: TrainState, world: World) -> int:
    """Planned peak of live tensors in a process of `world`, on its kind of device, with the kernels chosen."""
    cuda = world.device.type == "cuda"
    return plan_stage(stage.config, world.size, cuda=cuda, kernels=state.kernels).total


def compare(planned: int, world: World) -> Iterator[str]:
    """What to say at the end of a run; nothing on a CPU, where the process's size is another quantity."""
    if world.device.type != "cuda":
        return
    measured = peak_bytes(world.device)
    yield f"peak memory {measured / 2**30:.2f} GiB, planned {planned / 2**30:.2f} GiB"
    if abs(measured - planned) > TOLERANCE * planned:
        yield f"WARNING: the plan is {measured / planned - 1:+.0%} off; `sparlow plan` misjudges this configuration"
