"""A training loss over what it cost, smoothed; where it comes down to a level, and what one run saves another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    tokens = np.maximum.accumulate(np.asarray(curve.tokens, np.float64))  # a damaged log may have some that fall
    losses = np.asarray(curve.losses, np.float64)
    first = int(np.searchsorted(tokens, tokens[0] + window)) if len(tokens) else 0
    ends = np.arange(first, len(tokens)) + 1
    starts = np.searchsorted(tokens, tokens[first:] - window, side="right")
    # Sums of differences: those of the losses themselves would lose digits over a long run.
    level = losses.mean() if len(losses) else 0.0
    sums = np.concatenate([[0.0], np.cumsum(losses - level)])
    means = level + (sums[ends] - sums[starts]) / np.maximum(1, ends - starts)
    return Curve(means.tolist(), {kind: spent[first:] for kind, spent in curve.costs.items()})


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


KINDS = ("flops", "flops_dense_equivalent", "tokens")
"""Costs in which a speedup is stated."""
GRID = 12
"""Losses at which the speedup is followed along the curves."""


def speedup(baseline: Curve, run: Curve, loss: float, kind: str) -> float | None:
    """C_baseline(loss) / C_run(loss) - 1, where C is the cost at the first crossing of the smoothed curve.

    None where one of the two does not cross `loss`, or does not know its costs of this `kind`.
    """
    if kind not in baseline.costs or kind not in run.costs:
        return None
    theirs = first_crossing(baseline.costs[kind], baseline.losses, loss)
    ours = first_crossing(run.costs[kind], run.losses, loss)
    return None if theirs is None or ours is None else theirs / ours - 1


def common_losses(baseline: Curve, run: Curve, count: int = GRID) -> list[float]:
    """`count` losses, even from where the later of both curves begins down to the lowest that both reach.

    Empty where the curves share no loss; one loss where they share only that.
    """
    highest = min(baseline.losses[0], run.losses[0])
    lowest = max(min(baseline.losses), min(run.losses))
    if highest <= lowest:
        return [lowest] if highest == lowest else []
    parts = [index / (count - 1) for index in range(count)]
    # Rounding must not lead out of what both curves cross.
    return [min(highest, max(lowest, highest * (1 - part) + lowest * part)) for part in parts]


def compare(baseline: Curve, run: Curve, name: str, window: float) -> tuple[dict[str, Any] | None, str | None]:
    """The speedup of `run` over `baseline`, called `name`, both smoothed over `window` tokens; or None and the reason.

    Its "loss" is the lowest that both reach; "curve" repeats the figures on a grid of losses down to it.
    """
    if "flops" not in run.costs:
        return None, "its logged steps have no train/flops"
    if "flops" not in baseline.costs:
        return None, f"the logged steps of the baseline {name} have no train/flops"
    if not run.losses:
        return None, f"it is too short for a smoothing window of {window:,} tokens"
    if not baseline.losses:
        return None, f"the baseline {name} is too short for a smoothing window of {window:,} tokens"
    losses = common_losses(baseline, run)
    if not losses:
        if min(run.losses) > baseline.losses[0]:
            why = f"it never reaches the losses of {name}: {min(run.losses):.3f} at best, {name} begins at"
            return None, f"{why} {baseline.losses[0]:.3f}"
        why = f"{name} never reaches its losses: {min(baseline.losses):.3f} at best, this run begins at"
        return None, f"{why} {run.losses[0]:.3f}"
    curve = [{"loss": loss, **{kind: speedup(baseline, run, loss, kind) for kind in KINDS}} for loss in losses]
    return {"baseline": name, **curve[-1], "window_tokens": window, "curve": curve}, None
