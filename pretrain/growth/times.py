"""When a run grows."""

from typing import TYPE_CHECKING

from model.counts import count_parameters
from model.errors import UserError
from model.growth.timing import GrowthTime, grow_after
from pretrain.growth.config import as_toml
from pretrain.growth.words import counted, tokens_of_a_time

if TYPE_CHECKING:
    from pretrain.config.schema import Config


def growth_time(config: "Config") -> GrowthTime:
    """What the timing formula says for this run, with `growth.at = "formula"`."""
    parameters = count_parameters(config.model, config.linear)[config.growth.parameters]
    return grow_after(parameters, _tokens_per_update(config) * config.schedule.total_steps, config.growth.max_fraction)


def growth_steps(config: "Config", growths: int) -> list[int]:
    """The step after which each of `growths` growths happens. UserError where they are no rising steps of the run.

    Tokens are rounded up to whole steps, a part of the run and the formula to the nearest.
    """
    growth = config.growth
    if len(growth.times) != growths:
        raise UserError(
            f"growth.at = {as_toml(growth.at)} gives {counted(len(growth.times), 'time')}, but {growth.sizes} makes "
            f"{counted(growths, 'growth')}; give a time for each"
        )
    steps = [_step(config, time) for time in growth.times]
    if sorted(set(steps)) != steps:
        raise UserError(
            f"growth.at = {as_toml(growth.at)} is after the steps {', '.join(map(str, steps))}, which do not rise; "
            "give every growth a later step than the one before"
        )
    return steps


def _step(config: "Config", time: str | int | float) -> int:
    total, per_update = config.schedule.total_steps, _tokens_per_update(config)
    if total < 2:
        raise UserError(f"growth.at: there is no middle in schedule.total_steps {total}; set it to at least 2")
    tokens = tokens_of_a_time(config)
    fix = f"grow between {per_update:,} and {per_update * (total - 1):,} {tokens}"
    if isinstance(time, int):
        step = -(-time // per_update)
    elif isinstance(time, float):
        step = round(time * total)
    else:
        found = growth_time(config)
        step = round(found.tokens / per_update)
        if step or found.clamped:
            fix = f"{'lower' if step else 'raise'} growth.max_fraction {config.growth.max_fraction:g}, or {fix}"
    if not 0 < step < total:
        raise UserError(
            f"growth.at = {as_toml(time)} is step {step} of schedule.total_steps {total} ({per_update:,} {tokens} "
            f"each); {fix}"
        )
    return step


def _tokens_per_update(config: "Config") -> int:
    return config.train.global_batch_size * config.train.seq_len
