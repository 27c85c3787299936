"""What [growth] may not say beside the other tables: rows of `pretrain.config.checks`."""

from collections.abc import Iterator
from itertools import pairwise

from model.build import shape_of_model
from model.counts import linear_shapes, projection_shapes
from model.errors import UserError
from model.growth.linears import linears_alike, require_linears_growable, require_ranks_growable
from model.growth.plan import GrowthPlan
from model.growth.shapes import WIDTHS, require_widths_grow, same_widths
from model.growth.tensors import LAYER, require_silenceable
from model.growth.width import require_linears_widen
from model.linear.ranks import deciding, same_linears
from pretrain.config.literals import as_toml
from pretrain.config.stages import (
    GROWING,
    counted,
    depths,
    growth_plans,
    growth_step,
    growth_time,
    small_linear,
    small_model,
    tokens_of_a_time,
)
from pretrain.config.tables import Tables, changed
from pretrain.optim.config import MatrixConfig
from pretrain.optim.targets import find_targets

Rows = Iterator[tuple[object, str]]
"""A condition that must not hold, and what to say if it does."""


def growth_switch(config: Tables) -> Rows:
    """What [growth] may not say by itself."""
    growth = config.growth
    given = growth.model_fields_set
    if given and "enabled" not in given:
        yield True, f"growth.{min(given)} has no effect without growth.enabled; set growth.enabled = true"
    if not growth.enabled:
        return
    formula, at = growth.at == "formula", f"growth.at = {as_toml(growth.at)}"
    for key, used, where in (
        ("factor", not growth.layers, "growth.layers"),
        ("max_fraction", formula, at),
        ("parameters", formula, at),
        ("warmup_fraction", growth.schedule == "reset", 'growth.schedule = "continue"'),
    ):
        yield not used and changed(growth, (key,)), f"growth.{key} has no effect with {where}; remove one of them"
    yield (
        config.schedule.name == "cosine_restarts" and growth.schedule == "reset",
        'schedule.name = "cosine_restarts" counts its restarts from the first step of the run: set growth.schedule = '
        '"continue", or another schedule',
    )
    small_shape = small_model(config)
    require_widths_grow(small_shape, config.model, growth.width)
    yield (
        small_shape.n_heads % small_shape.kv_heads,
        f"growth: the small model's {small_shape.n_heads} heads are no multiple of its {small_shape.kv_heads} key and "
        "value heads; set growth.n_kv_heads to a divisor of its heads",
    )
    product, n_layers = growth.total_factor, config.model.n_layers
    yield (
        not growth.layers and len(growth.factors) > 1 and n_layers % product,
        f"growth.factor = {as_toml(growth.factor)} multiplies the layers by {product}, which does not divide "
        f"model.n_layers {n_layers}; set factors that do",
    )


def growth_rows(config: Tables) -> Rows:
    growth, grown = config.growth, config.linear
    layers = depths(config)
    yield (
        growth.operator == "source_layers" and len(layers) > 2,
        f'growth.operator = "source_layers" describes one growth, but {growth.sizes} makes {len(layers) - 1}; choose '
        "another operator",
    )
    for key in GROWING:
        small = getattr(growth, key)
        yield (
            small and key not in type(grown).model_fields,
            f'growth.{key} has no effect with linear.name = "{grown.name}", which has no {key}; remove it',
        )
        yield (
            small and small > getattr(grown, key),
            f"growth.{key} {small} is more than linear.{key} {getattr(grown, key, None)}; growth only adds, so give "
            "less",
        )
    linear, names = small_linear(config), linear_shapes(config.model)
    yield (
        growth.rank and all(deciding(getattr(grown, "ranks", ()), name) for name in names),
        f"growth.rank {growth.rank} has no effect where linear.ranks decides every rank; remove it",
    )
    yield (
        growth.density and grown.support == "block" and linear.density != grown.density,
        'growth.density has no meaning with linear.support = "block", where other densities have other blocks; remove '
        "one of them",
    )
    require_linears_growable(linear, grown)
    wider = not same_widths(small_model(config), config.model)
    for key in changed(growth, ("width", "share_spread")):
        yield (
            not wider,
            f"growth.{key} has no effect where nothing grows in width; remove it, or set "
            f"{' or '.join(f'growth.{key}' for key in WIDTHS)}",
        )
    yield (
        growth.width == "zero" and changed(growth, ("share_spread",)),
        'growth.share_spread has no effect with growth.width = "zero", which copies nothing; remove one of them',
    )
    yield (
        wider and config.optimizer.weights == "int8",
        'optimizer.weights = "int8" keeps codes, which have no copy in a wider model; set other weights, or leave '
        f"{', '.join(f'growth.{key}' for key in WIDTHS)} out",
    )
    require_linears_widen(small_model(config), config.model, linear, grown, growth.width)
    plans = growth_plans(config)
    steps = [(linear, grown if plan is plans[-1] else linear, plan) for plan in plans]
    for step in steps:
        require_ranks_growable(*step, projection_shapes(config.model))
    for index, (before, after) in enumerate(pairwise(layers)):
        yield (
            before == after and (index < len(layers) - 2 or (same_linears(linear, grown, names) and not wider)),
            f"{growth.sizes}: from {before} layers to {after} nothing grows; start from fewer, or in the last growth "
            "set growth.dim, ffn_dim or n_heads below those of [model], or growth.rank or growth.density below those "
            "of [linear]",
        )
    if growth.optimizer != "reset":
        copies = f'growth.optimizer = "{growth.optimizer}"'
        yield (
            wider or not all(linears_alike(*step, projection_shapes(config.model)) for step in steps),
            f'{copies} copies moments of the same shape only; set it to "reset", or leave '
            f"{', '.join(f'growth.{key}' for key in (*WIDTHS, *GROWING))} out, and give copies of a layer its ranks",
        )
        require_layers_alike(config, copies, 'set it to "reset"')
    yield from _times(config, len(layers) - 1)
    for plan in plans:
        require_no_zeroed_codes(config, plan)
        require_silenceable(grown, plan)


def _times(config: Tables, growths: int) -> Rows:
    growth, total, per_update = config.growth, config.schedule.total_steps, config.tokens_per_update
    at, tokens = f"growth.at = {as_toml(growth.at)}", tokens_of_a_time(config)
    yield (
        len(growth.times) != growths,
        f"{at} gives {counted(len(growth.times), 'time')}, but {growth.sizes} makes {counted(growths, 'growth')}; give "
        "a time for each",
    )
    yield total < 2, f"growth.at: there is no middle in schedule.total_steps {total}; set it to at least 2"
    steps = []
    for time in growth.times:
        step = growth_step(config, time)
        fix = f"grow between {per_update:,} and {per_update * (total - 1):,} {tokens}"
        if time == "formula" and (step or growth_time(config).clamped):
            fix = f"{'lower' if step else 'raise'} growth.max_fraction {growth.max_fraction:g}, or {fix}"
        yield (
            not 0 < step < total,
            f"growth.at = {as_toml(time)} is step {step} of schedule.total_steps {total} ({per_update:,} {tokens} "
            f"each); {fix}",
        )
        steps.append(step)
    yield (
        sorted(set(steps)) != steps,
        f"{at} is after the steps {', '.join(map(str, steps))}, which do not rise; give every growth a later step than "
        "the one before",
    )


def require_no_zeroed_codes(config: Tables, plan: GrowthPlan) -> None:
    """UserError for layers that start silent where weights are codes: growth copies those, and zeroes parameters."""
    if plan.silent and config.optimizer.weights == "int8":
        raise UserError(
            'growth.operator = "zero" and growth.function_preserving start layers at zero, which optimizer.weights = '
            '"int8" cannot; set another operator and function_preserving = false, or other weights'
        )


def require_layers_alike(config: Tables, setting: str, fix: str) -> None:
    """UserError, which names `setting` and `fix`, when the optimizer keeps other moments in some layers than in others.

    Those of one cannot be copied to another then.
    """
    if isinstance(config.optimizer, MatrixConfig):
        model = shape_of_model(config.model, config.linear)
        parts: dict[str, set[int]] = {}
        targets = find_targets(model, config.optimizer)
        for name, _ in model.named_parameters():
            if match := LAYER.fullmatch(name):
                parts.setdefault(match[2], set()).add(targets[name].rank if name in targets else 0)
        if mixed := [(part, ranks) for part, ranks in parts.items() if len(ranks) > 1]:
            part, ranks = mixed[0]
            how = "in some layers only" if 0 in ranks else "to another rank in some layers than in others"
            raise UserError(
                f"{setting} needs every layer treated alike, but the optimizer projects {part} {how}; {fix}"
            )
