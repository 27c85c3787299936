"""What growth in depth does to each layer, decided before any tensor is read."""

from dataclasses import dataclass

from model.config import ModelConfig
from model.errors import UserError


@dataclass(frozen=True)
class GrowthOptions:
    """What an operator may be told besides the two depths; one that an operator does not use must keep its default."""

    order: str = ""
    """For `zero`: a key of ORDERS; empty means interleave."""
    source_layers: tuple[int, ...] = ()
    """For `source_layers`: the small model's layer for each layer of the grown model."""
    function_preserving: bool = False
    """Every layer but the first copy of each starts with outputs of zero, so that the logits do not change."""


@dataclass(frozen=True)
class GrowthPlan:
    """Layer i of the grown model is a copy of layer `source[i]` of the small one, which has `small` layers.

    In the layers of `silent`, the two projections onto the residual stream (o_proj, down_proj) start as the zero map:
    of their tensors the linear's `silent_at_zero` are zero, the rest are copied. Nothing is drawn anew.
    """

    small: int
    source: tuple[int, ...]
    silent: frozenset[int] = frozenset()


def small_layers(n_layers: int, factor: int) -> int:
    """Count the layers of the model that grows by `factor` to `n_layers`; UserError when there is no such model."""
    if factor < 1 or n_layers % factor:
        raise UserError(f"growth.factor {factor} does not divide model.n_layers {n_layers}; set one that does")
    return n_layers // factor


def require_growable(small: ModelConfig, large: ModelConfig) -> None:
    """UserError unless the models differ in nothing but depth (and what no tensor and no logit depends on)."""
    free = {"n_layers", "max_seq_len", "init_std"}
    for key, value in large:
        if key not in free and value != getattr(small, key):
            raise UserError(
                f"growth adds layers and changes nothing else, but model.{key} is {getattr(small, key)} in the "
                f"small model and {value} in the grown one; make them equal"
            )
    require_no_fewer(small.n_layers, large.n_layers)


def require_no_fewer(small: int, large: int) -> None:
    """UserError when a model of `small` layers would lose some."""
    if large < small:
        raise UserError(
            f"growth.factor: {small} layers cannot grow to {large}, which is fewer; growth only adds layers"
        )
