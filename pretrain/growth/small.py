"""The model before growth: its depths, its linears, and whether it can become the grown one."""

import math
import operator
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from model.build import shape_of_model
from model.errors import UserError
from model.growth import plan_growth
from model.growth.linears import require_linears_growable
from model.growth.plan import GrowthPlan, small_layers
from model.growth.tensors import LAYER
from model.linear import LinearConfig
from pretrain.growth.config import GrowthConfig, as_toml
from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.targets import find_targets

if TYPE_CHECKING:
    from pretrain.config.schema import Config


def depths(config: "Config") -> list[int]:
    """Layers of every stage's model. UserError where there is no such model."""
    growth, n_layers = config.growth, config.model.n_layers
    if growth.layers:
        layers = [*growth.layers, n_layers]
    else:
        product = math.prod(growth.factors)
        if len(growth.factors) > 1 and n_layers % product:
            raise UserError(
                f"growth.factor = {as_toml(growth.factor)} multiplies the layers by {product}, which does not divide "
                f"model.n_layers {n_layers}; set factors that do"
            )
        layers = list(accumulate(growth.factors, operator.mul, initial=small_layers(n_layers, product)))
    if growth.operator == "source_layers" and len(layers) > 2:
        raise UserError(
            f'growth.operator = "source_layers" describes one growth, but {growth.sizes} makes {len(layers) - 1}; '
            "choose another operator"
        )
    return layers


def plan_depth(growth: GrowthConfig, small: int, large: int) -> GrowthPlan:
    """The plan of one growth. UserError where the operator cannot."""
    try:
        return plan_growth(growth.operator, small, large, growth.options)
    except UserError as error:
        # An operator sees two depths, and names the key that they mostly come from.
        key = "growth.layers" if growth.layers else "growth.factor"
        raise UserError(str(error).replace("growth.factor", key)) from None


def require_no_zeroed_codes(config: "Config", plan: GrowthPlan | None) -> None:
    """UserError for layers that start silent where weights are codes: growth copies those, and zeroes parameters."""
    if plan is not None and plan.silent and config.optimizer.weights == "int8":
        raise UserError(
            'growth.operator = "zero" and growth.function_preserving start layers at zero, which optimizer.weights = '
            '"int8" cannot; set another operator and function_preserving = false, or other weights'
        )


def require_change(config: "Config", layers: list[int], linear: LinearConfig) -> None:
    """UserError for a growth that adds nothing; `linear` is what the small models have."""
    for index, (before, after) in enumerate(pairwise(layers)):
        if before == after and (index < len(layers) - 2 or linear == config.linear):
            raise UserError(
                f"{config.growth.sizes}: from {before} layers to {after} nothing grows; start from fewer, or in the "
                "last growth set growth.rank or growth.density below those of [linear]"
            )


def differences(small: "Config", config: "Config") -> str:
    """What makes a small model another one than that of `config`, as keys and values."""
    found = [f"model.n_layers = {small.model.n_layers}"]
    for key in ("rank", "density"):
        value = getattr(small.linear, key, None)
        if value != getattr(config.linear, key, None):
            found.append(f"linear.{key} = {value} from growth.{key}")
    return ", ".join(found)


def small_linear(config: "Config") -> LinearConfig:
    """The linears before the last growth."""
    growth, linear = config.growth, config.linear
    changes: dict[str, float] = {}
    for key in ("rank", "density"):
        small = getattr(growth, key)
        if not small:
            continue
        if key not in type(linear).model_fields:
            raise UserError(
                f'growth.{key} has no effect with linear.name = "{linear.name}", which has no {key}; remove it'
            )
        if small > getattr(linear, key):
            raise UserError(
                f"growth.{key} {small} is more than linear.{key} {getattr(linear, key)}; growth only adds, so give less"
            )
        changes[key] = small
    small_linear: LinearConfig = linear.model_copy(update=changes)
    if "density" in changes and linear.support == "block" and small_linear.density != linear.density:
        raise UserError(
            'growth.density has no meaning with linear.support = "block", where other densities have other blocks; '
            "remove one of them"
        )
    require_linears_growable(small_linear, linear)
    return small_linear


def require_copyable(config: "Config", linear: LinearConfig) -> None:
    """UserError when moments cannot be copied: each needs the basis, and the shape, that it was made with."""
    if config.growth.optimizer == "reset":
        return
    if linear != config.linear:
        raise UserError(
            f'growth.optimizer = "{config.growth.optimizer}" copies moments of the same shape only; set it to "reset", '
            "or leave growth.rank and growth.density out"
        )
    require_layers_alike(config, f'growth.optimizer = "{config.growth.optimizer}"', 'set it to "reset"')


def require_layers_alike(config: "Config", setting: str, fix: str) -> None:
    """UserError, which names `setting` and `fix`, when the optimizer keeps other moments in some layers than in others.

    Those of one cannot be copied to another then.
    """
    if isinstance(config.optimizer, MatrixConfig):
        model = shape_of_model(config.model, config.linear)
        parts: dict[str, set[bool]] = {}
        targets = find_targets(model, config.optimizer)
        for name, _ in model.named_parameters():
            if match := LAYER.fullmatch(name):
                parts.setdefault(match[2], set()).add(name in targets)
        if mixed := [part for part, kinds in parts.items() if len(kinds) > 1]:
            raise UserError(
                f"{setting} needs every layer treated alike, but the optimizer projects {mixed[0]} in some layers "
                f"only; {fix}"
            )
