"""The stages of a run: which model trains over which steps, at which learning rate. One stage without growth."""

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from model.build import shape_of_model
from model.counts import count_parameters
from model.errors import UserError
from model.growth import plan_growth
from model.growth.linears import require_linears_growable
from model.growth.plan import GrowthPlan, require_no_fewer, small_layers
from model.growth.tensors import LAYER
from model.growth.timing import GrowthTime, grow_after
from model.linear import LinearConfig
from model.seeding import derive_seed
from pretrain.growth.config import GrowthConfig
from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.targets import find_targets
from pretrain.schedule import ScheduleConfig

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
    layers = _layers(config)
    steps = [0, *_growth_steps(config), config.schedule.total_steps]
    if len(layers) != len(steps) - 1:
        raise UserError(
            f"growth.at names {len(steps) - 2} times for {len(layers) - 1} growths (growth.factor or growth.layers); "
            "give as many of one as of the other"
        )
    linear = _small_linear(config)
    _require_copyable(config, linear)
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
        plan = plan_growth(growth.operator, layers[index - 1], n_layers, growth.options) if index else None
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
            raise UserError(f"growth: the model of {stage.config.model.n_layers} layers: {error}") from None
    return tuple(found)


def growth_time(config: "Config") -> GrowthTime:
    """What the timing formula says for this run, with `growth.at = "formula"`."""
    parameters = count_parameters(config.model, config.linear)[config.growth.parameters]
    return grow_after(parameters, _tokens_per_update(config) * config.schedule.total_steps, config.growth.max_fraction)


def _layers(config: "Config") -> list[int]:
    """Layers of every stage's model."""
    growth, layers = config.growth, [config.model.n_layers]
    if growth.layers:
        layers = [*growth.layers, *layers]
        for before, after in pairwise(layers):
            if before < 1:
                raise UserError(f"growth.layers: {before} is no number of layers; give at least 1")
            require_no_fewer(before, after)
    else:
        for factor in reversed(growth.factor if isinstance(growth.factor, tuple) else (growth.factor,)):
            layers.insert(0, small_layers(layers[0], factor))
    return layers


def _growth_steps(config: "Config") -> list[int]:
    """The step after which each growth happens."""
    total, per_update = config.schedule.total_steps, _tokens_per_update(config)
    steps = []
    for time in config.growth.times:
        if time == "formula":
            step = round(growth_time(config).tokens / per_update)
        elif isinstance(time, int):
            step = math.ceil(time / per_update)
        else:
            assert isinstance(time, float)
            step = round(time * total)
        if not 0 < step < total:
            raise UserError(
                f"growth.at = {time} is step {step} of schedule.total_steps {total} ({per_update:,} tokens each); "
                f"grow between {per_update:,} and {per_update * (total - 1):,} tokens"
            )
        steps.append(step)
    if sorted(set(steps)) != steps:
        raise UserError(
            f"growth.at is at steps {', '.join(map(str, steps))}, which do not rise; give later times later"
        )
    return steps


def _tokens_per_update(config: "Config") -> int:
    return config.train.global_batch_size * config.train.seq_len


def _restarted(config: "Config", start: int) -> ScheduleConfig:
    return config.schedule.model_copy(
        update={
            "total_steps": config.schedule.total_steps - start,
            "warmup_fraction": config.growth.warmup_fraction,
        }
    )


def _small_linear(config: "Config") -> LinearConfig:
    """The linears before the last growth."""
    growth, linear = config.growth, config.linear
    changes: dict[str, float] = {}
    for key in ("rank", "density"):
        small = getattr(growth, key)
        if not small:
            continue
        if key not in type(linear).model_fields:
            raise UserError(f"growth.{key} has no effect with linear.name = {linear.name!r}, which has none; remove it")
        if small > getattr(linear, key):
            raise UserError(
                f"growth.{key} {small} is more than linear.{key} {getattr(linear, key)}; growth only adds, so give less"
            )
        changes[key] = small
    small_linear = linear.model_copy(update=changes)
    require_linears_growable(small_linear, linear)
    return small_linear


def _require_copyable(config: "Config", linear: LinearConfig) -> None:
    """UserError when moments cannot be copied: each needs the basis, and the shape, that it was made with."""
    if config.growth.optimizer == "reset":
        return
    if linear != config.linear:
        raise UserError(
            f'growth.optimizer = "{config.growth.optimizer}" copies moments of the same shape only; set it to "reset", '
            "or leave growth.rank and growth.density out"
        )
    if isinstance(config.optimizer, MatrixConfig):
        model = shape_of_model(config.model, config.linear)
        parts: dict[str, set[bool]] = {}
        targets = find_targets(model, config.optimizer)
        for name, _ in model.named_parameters():
            if match := LAYER.fullmatch(name):
                parts.setdefault(match[2], set()).add(name in targets)
        if mixed := [part for part, kinds in parts.items() if len(kinds) > 1]:
            raise UserError(
                f'growth.optimizer = "{config.growth.optimizer}" needs every layer treated alike, but the optimizer '
                f'projects {mixed[0]} in some layers only; set it to "reset"'
            )
