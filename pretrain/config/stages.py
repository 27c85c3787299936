"""The models before each growth of a run, and when it grows: arithmetic on its configuration, which may yet be wrong.

Without growth there is one stage, the run's own. Everything here says what the tables ask for; whether they may is in
`pretrain.config.checks`, and `pretrain.config.schema` puts the stages of a valid configuration together.
"""

import operator
from itertools import accumulate, pairwise
from typing import TypeVar

from model.config import ModelConfig
from model.counts import count_parameters
from model.errors import UserError
from model.growth import plan_growth
from model.growth.plan import GrowthPlan, GrowthTime, grow_after, small_layers
from model.growth.shapes import WIDTHS, width_of
from model.linear import LinearConfig
from model.seeding import derive_seed
from pretrain.config.growth_table import GrowthConfig
from pretrain.config.tables import Tables

AnyTables = TypeVar("AnyTables", bound=Tables)

GROWING = ("rank", "density")
"""What of a linear may grow: keys of [linear] and of [growth]."""


def depths(config: Tables) -> list[int]:
    """Count the layers of every stage's model. UserError where a single factor does not divide those of the last."""
    growth, n_layers = config.growth, config.model.n_layers
    if not growth.enabled:
        return [n_layers]
    if growth.layers:
        return [*growth.layers, n_layers]
    small = small_layers(n_layers, growth.total_factor)
    return list(accumulate(growth.factors, operator.mul, initial=small))


def small_model(config: Tables) -> ModelConfig:
    """The shape before the last growth, but for its layers."""
    changes = {key: getattr(config.growth, key) for key in WIDTHS if getattr(config.growth, key)}
    if not changes:
        return config.model
    model, head = config.model.model_copy(update=changes), config.model.head_width
    pinned = {} if model.n_heads * head == model.dim else {"head_dim": head}
    return model.model_copy(update=pinned)


def small_linear(config: Tables) -> LinearConfig:
    """The linears before the last growth."""
    changes = {key: getattr(config.growth, key) for key in GROWING if getattr(config.growth, key)}
    return config.linear.model_copy(update=changes)


def stage_configs(config: AnyTables) -> list[AnyTables]:
    """`config` with the model, linears, seed and peak learning rate of every stage, and without growth."""
    growth, layers = config.growth, depths(config)
    if not growth.enabled:
        return [config]
    models = [small_model(config)] * (len(layers) - 1) + [config.model]
    linears = [small_linear(config)] * (len(layers) - 1) + [config.linear]
    rates = [growth.lr or config.optimizer.lr] * (len(layers) - 1) + [config.optimizer.lr]
    # Another seed: an optimizer that counts from 0 again shall not draw the same numbers again.
    seeds = [derive_seed(config.run.seed, "stage", index) if index else config.run.seed for index in range(len(layers))]
    return [
        config.model_copy(
            update={
                "growth": GrowthConfig(),
                "model": model.model_copy(update={"n_layers": n_layers}),
                "linear": linear,
                "optimizer": config.optimizer.model_copy(update={"lr": lr}),
                "run": config.run.model_copy(update={"seed": seed}),
            }
        )
        for n_layers, model, linear, lr, seed in zip(layers, models, linears, rates, seeds, strict=True)
    ]


def growth_plans(config: Tables) -> list[GrowthPlan]:
    """Plan how the layers of each growth come from those before it. UserError where the operator cannot."""
    growth = config.growth
    try:
        return [plan_growth(growth.operator, small, large, growth.options) for small, large in pairwise(depths(config))]
    except UserError as error:
        # An operator sees two depths, and names the key that they mostly come from.
        key = "growth.layers" if growth.layers else "growth.factor"
        raise UserError(str(error).replace("growth.factor", key)) from None


def growth_time(config: Tables) -> GrowthTime:
    """What the timing formula says for this run, with `growth.at = "formula"`."""
    parameters = count_parameters(config.model, config.linear)[config.growth.parameters]
    return grow_after(parameters, config.tokens_per_update * config.schedule.total_steps, config.growth.max_fraction)


def growth_step(config: Tables, time: str | int | float) -> int:
    """The step after which a growth at `time` happens: tokens are rounded up, all else to the nearest step."""
    if isinstance(time, int):
        return -(-time // config.tokens_per_update)
    if isinstance(time, float):
        return round(time * config.schedule.total_steps)
    return round(growth_time(config).tokens / config.tokens_per_update)


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def tokens_of_a_time(config: Tables) -> str:
    """What growth.at counts: the places in rows, of which padding takes some where a row holds one document."""
    return "tokens with padding" if config.data.packing == "document" else "tokens"


def model_size(stage: Tables, run: Tables) -> str:
    """The layers of a stage's model, and of what else grows in `run` how much it has: `6 layers of rank 4`."""
    growing = [key for key in (*WIDTHS, *GROWING) if getattr(run.growth, key)]
    values = (width_of(stage.model, key) if key in WIDTHS else getattr(stage.linear, key) for key in growing)
    told = " and ".join(f"{key} {value:g}" for key, value in zip(growing, values, strict=True))
    return counted(stage.model.n_layers, "layer") + (f" of {told}" if told else "")
