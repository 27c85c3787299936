"""What a run saves against a baseline at equal training loss (arXiv 2405.15319, section 3)."""

from typing import Any

from pretrain.report.curve import Curve, first_crossing

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
