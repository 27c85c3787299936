"""When to grow."""

import math
from dataclasses import dataclass

from model.errors import UserError


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
