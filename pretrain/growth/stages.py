"""The stages of a run: which model trains over which steps, at which learning rate. One stage without growth."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.errors import UserError
from model.growth.plan import GrowthPlan
from model.seeding import derive_seed
from pretrain.config.schedule import ScheduleConfig
from pretrain.growth.config import GrowthConfig
from pretrain.growth.small import (
    depths,
    differences,
    plan_depth,
    require_change,
    require_copyable,
    require_no_zeroed_codes,
    small_linear,
)
from pretrain.growth.times import growth_steps

if TYPE_CHECKING:
    from pretrain.config.schema import Config


@dataclass(frozen=True)
class Stage:
    """The steps `start + 1` to `end`, with one model."""

    index: int
    start: int
    end: int
    config: "Config"
    """The run's configuration with this stage's model, linears and peak learning rate, and without growth."""
    schedule: ScheduleConfig
    schedule_start: int
    """Steps before the first one of `schedule`."""
    plan: GrowthPlan | None
    """How the layers come from those of the stage before; None for the first."""

    def lr(self, step: int) -> float:
        """Learning rate of update `step`, counted from 1 over the whole run."""
        return self.config.optimizer.lr * self.schedule.factor(step - self.schedule_start)


@functools.lru_cache(maxsize=16)
def stages(config: "Config") -> tuple[Stage, ...]:
    """All stages of a run, from its configuration alone. UserError where it cannot grow as it says."""
    growth = config.growth
    if not growth.enabled:
        return (Stage(0, 0, config.schedule.total_steps, config, config.schedule, 0, None),)
    layers, linear = depths(config), small_linear(config)
    require_change(config, layers, linear)
    require_copyable(config, linear)
    steps = [0, *growth_steps(config, len(layers) - 1), config.schedule.total_steps]
    found: list[Stage] = []
    for index, (n_layers, start, end) in enumerate(zip(layers, steps[:-1], steps[1:], strict=True)):
        last = index == len(layers) - 1
        stage_config = config.model_copy(
            update={
                "growth": GrowthConfig(),
                "model": config.model.model_copy(update={"n_layers": n_layers}),
                "linear": config.linear if last else linear,
                "optimizer": config.optimizer.model_copy(
                    update={"lr": config.optimizer.lr if last else growth.lr or config.optimizer.lr}
                ),
                # Another seed: an optimizer that counts from 0 again shall not draw the same numbers again.
                "run": config.run.model_copy(
                    update={"seed": derive_seed(config.run.seed, "stage", index) if index else config.run.seed}
                ),
            }
        )
        plan = plan_depth(growth, layers[index - 1], n_layers) if index else None
        require_no_zeroed_codes(config, plan)
        restarts = index > 0 and growth.schedule == "reset"
        found.append(
            Stage(
                index=index,
                start=start,
                end=end,
                config=stage_config,
                schedule=_restarted(config, start) if restarts else config.schedule,
                schedule_start=start if restarts else 0,
                plan=plan,
            )
        )
    for stage in found[:-1]:
        try:
            stage.config.require_consistent()
        except ValueError as error:
            raise UserError(f"growth: the small model ({differences(stage.config, config)}): {error}") from None
    return tuple(found)


def _restarted(config: "Config", start: int) -> ScheduleConfig:
    return config.schedule.model_copy(
        update={
            "total_steps": config.schedule.total_steps - start,
            "warmup_fraction": config.growth.warmup_fraction,
        }
    )
