"""A training loss over what it cost, smoothed, and where it first comes down to a level."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

COST_KEYS = {
    "tokens": "train/tokens_seen",
    "flops": "train/flops",
    "flops_dense_equivalent": "train/flops_dense_equivalent",
}
"""Kinds of cost, and where the logged steps have them."""
FEWEST_POINTS = 8
"""Logged steps in a default window, at least."""
DEFAULT_FRACTION = 0.02
"""A default window's part of the tokens of the shortest run."""


@dataclass(frozen=True)
class Curve:
    """Losses in nats per token in the order of training, and what was spent by then, in one list per kind of cost.

    `costs["tokens"]` is there always; "flops" and "flops_dense_equivalent" only where every point has them.
    """

    losses: list[float]
    costs: dict[str, list[float]]

    @property
    def tokens(self) -> list[float]:
        return self.costs["tokens"]


def smooth(curve: Curve, window: float) -> Curve:
    """Trailing mean: at t tokens over the points in (t - window, t].

    Points whose window would begin before the first of `curve` are left out: training, or what is logged of a run that
    goes on from a grown checkpoint, does not reach back so far. A run shorter than the window gives an empty curve.
    """
    tokens, losses = curve.tokens, curve.losses
    start, first, means = 0, len(tokens), []
    for index, now in enumerate(tokens):
        while tokens[start] <= now - window:
            start += 1
        if now - window >= tokens[0]:
            first = min(first, index)
            means.append(math.fsum(losses[start : index + 1]) / (index + 1 - start))
    return Curve(means, {kind: spent[first:] for kind, spent in curve.costs.items()})


def default_window(curves: Sequence[Curve]) -> int:
    """2 % of the tokens of the shortest run, or more, until no window of any run holds fewer than 8 logged steps.

    A run of 8 logged steps or fewer has no window of 8, and counts with all its tokens: it is not smoothed.
    """
    least = DEFAULT_FRACTION * min(curve.tokens[-1] for curve in curves)
    return math.ceil(max(least, *(_span(curve.tokens) for curve in curves)))


def _span(tokens: list[float]) -> float:
    """The longest stretch that holds 8 points, open at its left end; more than the run where it has no 8."""
    if len(tokens) <= FEWEST_POINTS:
        return tokens[-1]
    return max(end - begin for begin, end in zip(tokens, tokens[FEWEST_POINTS:], strict=False))


def first_crossing(costs: Sequence[float], losses: Sequence[float], level: float) -> float | None:
    """The cost at which `losses` first comes down to `level`, linear between points.

    None where it never does, and where it begins below: then the crossing is older than the first point.
    """
    if losses and losses[0] < level:
        return None
    for index, loss in enumerate(losses):
        if loss == level:
            return costs[index]
        if loss < level:
            above = losses[index - 1]
            part = (above - level) / (above - loss)
            return costs[index - 1] + part * (costs[index] - costs[index - 1])
    return None
