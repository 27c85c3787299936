"""The pictures of a comparison: who is best and how surely, at what memory, how it went, how well rates were tuned."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.compare.progress import Progress, Standing
from pretrain.compare.results import records
from pretrain.report.curve import Curve, default_window, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS = "held-out loss (nats per token)"
LINES = ("-", "--", ":", "-.")
COLOURS = 10
"""Length of matplotlib's cycle; further methods have other lines."""


def draw_pictures(progress: Progress, entries: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """Write those that there is something for; equal runs give equal bytes. What is drawn has a loss."""
    budgets = progress.suite.suite.equal
    rankings = {budget: [one for one in progress.ranking(budget) if one.losses] for budget in budgets}
    figures = {f"loss_{budget}.png": _losses(found, budget) for budget, found in rankings.items() if found}
    found = rankings[budgets[0]]
    if found:
        figures["memory.png"] = _memory(found, entries)
        figures["curves.png"] = _curves(found)
        figures["rates.png"] = _rates(progress, found)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / name)
        # No date, no version of matplotlib: equal runs give equal bytes.
        figure.savefig(paths[-1], dpi=120, metadata={"Software": None})
    return paths


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure  # pyplot, and what it loads, takes longer than the picture

    figure = Figure(figsize=(width, height), layout="constrained")
    panel = figure.subplots()
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def _losses(found: Sequence[Standing], budget: str) -> "Figure":
    """Methods from the best down: every seed a dot, the mean a line, and one standard deviation to both sides."""
    figure, panel = _figure(7.2, 1.2 + 0.34 * len(found))
    for row, one in enumerate(found):
        panel.plot(list(one.losses.values()), [row] * len(one.losses), "o", color="C0", markersize=5, alpha=0.7)
        panel.errorbar(one.mean, row, xerr=one.spread, fmt="|", color="black", markersize=13, capsize=3, linewidth=1.2)
    panel.set_yticks(range(len(found)), [one.method.name for one in found])
    panel.invert_yaxis()
    what = "tokens" if budget == "tokens" else "training FLOPs"
    panel.set(xlabel=LOSS, title=f"equal {what}: each seed, mean ± standard deviation")
    return figure


def _memory(found: Sequence[Standing], entries: dict[str, dict[str, Any]]) -> "Figure":
    figure, panel = _figure(7.2, 5)
    for index, one in enumerate(found):
        size = entries[str(one.runs[0].folder)]["planned_state_bytes"] / 1e6
        panel.errorbar(size, one.mean, yerr=one.spread, fmt="o", color=f"C{index % COLOURS}", capsize=3)
        beside = (6, 4 if index % 2 else -11)  # neighbours in loss, one above and one below
        panel.annotate(one.method.name, (size, one.mean), beside, textcoords="offset points", fontsize=8)
    panel.margins(x=0.15)
    panel.set(xlabel="weights and optimizer state (MB, planned)", ylabel=LOSS, title="loss against memory")
    return figure


def _curves(found: Sequence[Standing]) -> "Figure":
    """Training losses at the best rate, averaged over seeds, then smoothed over tokens."""
    figure, panel = _figure(7.2, 5)
    curves = [(index, one, curve) for index, one in enumerate(found) if (curve := _mean_curve(one)).losses]
    if not curves:
        return figure
    window = default_window([curve for _, _, curve in curves])
    drawn = []
    for index, one, whole in curves:
        curve = smooth(whole, window)
        curve = curve if curve.losses else whole
        panel.plot(curve.tokens, curve.losses, _line(index), color=f"C{index % COLOURS}", label=one.method.name)
        drawn += [loss for loss, at in zip(curve.losses, curve.tokens, strict=True) if at > 0.1 * curve.tokens[-1]]
    margin = 0.05 * (max(drawn) - min(drawn)) or 0.1  # the steep beginning goes out of the top
    panel.set_ylim(min(drawn) - margin, max(drawn) + margin)
    panel.set(xlabel="tokens", ylabel="training loss (nats per token)")
    panel.set_title(f"mean over seeds, and over the last {window:,} tokens")
    panel.legend(fontsize=8, frameon=False)
    return figure


def _mean_curve(one: Standing) -> Curve:
    """The mean over seeds at each step that all of them have logged."""
    logs: list[dict[int, tuple[float, float]]] = []
    for run in one.runs:
        if run.seed in one.losses:
            logs.append({step: (tokens, loss) for step, tokens, loss in _logged(records(run))})
    steps = sorted(set.intersection(*(set(log) for log in logs))) if logs else []
    tokens = [statistics.fmean(log[step][0] for log in logs) for step in steps]
    return Curve([statistics.fmean(log[step][1] for log in logs) for step in steps], {"tokens": tokens})


def _logged(found: list[dict[str, Any]]) -> Iterator[tuple[int, float, float]]:
    for record in found:
        loss, tokens = record.get("train/loss"), record.get("train/tokens_seen")
        if loss is not None and tokens is not None:
            yield record["step"], tokens, loss


def _rates(progress: Progress, found: Sequence[Standing]) -> "Figure":
    """Losses of the first seed over rates: a curve that turns within its list is tuned. A cross at the top diverged."""
    figure, panel = _figure(7.2, 5)
    panel.set_xscale("log")
    lost = []
    for index, one in enumerate(found):
        runs = progress.tuning(one.method)
        points = [(run.rate, loss) for run in runs if (loss := progress.loss(run)) is not None]
        colour = f"C{index % COLOURS}"
        panel.plot(*np.transpose(points), f"o{_line(index)}", color=colour, markersize=4.5, label=one.method.name)
        lost += [(run.rate, colour) for run in runs if progress.loss(run) is None]
    for rate, colour in lost:
        panel.plot(rate, 0.98, "x", color=colour, transform=panel.get_xaxis_transform(), clip_on=False)
    panel.set(xlabel="peak learning rate", ylabel=LOSS, title="how well rates are tuned (first seed)")
    panel.legend(fontsize=8, frameon=False)
    return figure


def _line(index: int) -> str:
    return LINES[index // COLOURS % len(LINES)]
