"""What growth in depth does to each layer, decided before any tensor is read, and when the paper's formula grows."""

import math
from dataclasses import dataclass

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


def require_no_fewer(small: int, large: int) -> None:
    """UserError when a model of `small` layers would lose some."""
    if large < small:
        raise UserError(
            f"growth.factor: {small} layers cannot grow to {large}, which is fewer; growth only adds layers"
        )


@dataclass(frozen=True)
class GrowthTime:
    """How many tokens the small model trains on before it grows."""

    tokens: int
    """What to use."""
    formula_tokens: float
    """What the formula says."""
    clamped: bool
    """The formula asks for more than the allowed part of the run."""


def grow_after(parameters: int, tokens: int, max_fraction: float = 0.1) -> GrowthTime:
    """Solve log10(d) = 0.88 log10(N) + 163.27 / log10(C) - 5.74 with C = 6 N D (arXiv 2405.15319), d in tokens.

    N = `parameters` of the grown model; for factored linears its dense equivalent, as the fit was made on dense models.
    D = `tokens` of the whole run. The formula falls with C: at budgets of a few billion tokens it
    exceeds D itself. So d is at most `max_fraction` of D.
    """
    if not 0 < max_fraction <= 1:
        raise UserError(f"growth.max_fraction {max_fraction} is no part of a run; set it above 0 and at most to 1")
    if parameters < 1 or tokens < 1:
        raise UserError(f"growth.at: no formula for {parameters} parameters and {tokens} tokens; both must be positive")
    flops = 6 * parameters * tokens
    formula = 10 ** (0.88 * math.log10(parameters) + 163.27 / math.log10(flops) - 5.74)
    limit = max_fraction * tokens
    return GrowthTime(int(min(formula, limit)), formula, formula > limit)
