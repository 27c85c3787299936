"""A configuration that fits together, and the stages that its run trains in."""

import functools
from dataclasses import dataclass

from pydantic import model_validator

from model.growth.plan import GrowthPlan
from pretrain.config.checks import check
from pretrain.config.schedule import ScheduleConfig
from pretrain.config.stages import growth_plans, growth_step, stage_configs
from pretrain.config.tables import Tables


class Config(Tables):
    """One run: all of its tables, checked against each other."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        check(self)
        return self

    @property
    def stages(self) -> "tuple[Stage, ...]":
        """Which model trains over which steps; one stage without growth."""
        return _stages(self)


@dataclass(frozen=True)
class Stage:
    """The steps `start + 1` to `end`, with one model."""

    index: int
    start: int
    end: int
    config: Config
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
def _stages(config: Config) -> tuple[Stage, ...]:
    schedule, growth, configs = config.schedule, config.growth, stage_configs(config)
    times = growth.times if growth.enabled else ()
    starts = [0, *(growth_step(config, time) for time in times)]
    ends = [*starts[1:], schedule.total_steps]
    plans = [None, *growth_plans(config)]
    found: list[Stage] = []
    for index, (start, end, stage_config, plan) in enumerate(zip(starts, ends, configs, plans, strict=True)):
        restarts = index > 0 and growth.schedule == "reset"
        own = {"total_steps": schedule.total_steps - start, "warmup_fraction": growth.warmup_fraction}
        curve = schedule.model_copy(update=own) if restarts else schedule
        found.append(Stage(index, start, end, stage_config, curve, start if restarts else 0, plan))
    return tuple(found)
