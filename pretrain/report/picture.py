"""The picture of a report: losses over tokens and over FLOPs, and held-out bits per byte."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.report.curve import Curve, first_crossing
from pretrain.report.logged import LoggedRun
from pretrain.report.series import extremes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 4000
"""Points of a line, several for each pixel; of more, the peaks are drawn."""
LABELS = {"tokens": "tokens", "flops": "training FLOPs", "bytes": "bytes of text"}


def draw(
    runs: Sequence[LoggedRun],
    smoothed: Sequence[Curve],
    window: int,
    saved: Sequence[dict[str, Any] | None],
    path: Path,
) -> None:
    """Write a PNG with `runs`, their `smoothed` curves and what each saved; equal arguments give equal bytes.

    Without a run that has FLOPs there is no panel of losses over them, and bits per byte are over tokens unless all
    runs have FLOPs.
    """
    from matplotlib.figure import Figure  # pyplot, and what it loads, takes longer than the picture

    over_flops = any(run.has_flops for run in runs)
    panels = 3 if over_flops else 2
    figure = Figure(figsize=(5.2 * panels, 4.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)
    losses = {"tokens": axes[0, 0]} | ({"flops": axes[0, 1]} if over_flops else {})
    for kind, panel in losses.items():
        for index, (run, curve) in enumerate(zip(runs, smoothed, strict=True)):
            if kind in run.curve.costs:
                _draw_losses(panel, kind, run, curve, f"C{index}")
        panel.set(xlabel=LABELS[kind], ylabel="loss (nats per token)", title=f"training loss over {LABELS[kind]}")
        _limit(panel, [curve if curve.losses else run.curve for run, curve in zip(runs, smoothed, strict=True)])
    by_name = {run.name: curve for run, curve in zip(runs, smoothed, strict=True)}
    compared = [(index, found) for index, found in enumerate(saved) if found]
    for line, (index, found) in enumerate(compared):
        _draw_speedup(losses["flops"], f"C{index}", found, by_name[found["baseline"]], smoothed[index], line)
    kind, panel = _spent(runs), axes[0, -1]
    for index, run in enumerate(runs):
        panel.plot(*run.figures("val/bits_per_byte", kind), "o-", color=f"C{index}", markersize=4.5, linewidth=1.2)
    panel.set(xlabel=LABELS[kind], ylabel="bits per byte", title=f"held-out text over {LABELS[kind]}")
    for panel in axes.flat:
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"line: mean over the last {window:,} tokens    faint: each logged step    dots: held-out text", fontsize=10
    )
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(runs), 5), frameon=False)
    # No date, no version of matplotlib: equal runs give equal bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _spent(runs: Sequence[LoggedRun]) -> str:
    """What bits per byte are drawn over: with unlike tokens bytes of text, where they are known."""
    unlike = any(run.data.unlike(runs[0].data) for run in runs[1:])
    if unlike and all(run.data.bytes_per_token for run in runs):
        return "bytes"
    return "flops" if all(run.has_flops for run in runs) else "tokens"


def _draw_losses(panel: "Axes", kind: str, run: LoggedRun, smoothed: Curve, color: str) -> None:
    faint = 0.25 if smoothed.losses else 0.8
    panel.plot(*_thinned(run.curve, kind), color=color, alpha=faint, linewidth=0.7)
    panel.plot(*_thinned(smoothed, kind), color=color, linewidth=1.6, label=run.name)
    held_out = run.figures("val/loss", kind)
    panel.plot(*held_out, "o", color=color, markersize=4.5, markeredgecolor="white", markeredgewidth=0.6, zorder=3)
    for spent, text in run.growth(kind):
        panel.axvline(spent, color=color, linestyle="--", linewidth=0.9, alpha=0.8)
        panel.annotate(
            text, (spent, 1), (3, -3), ("data", "axes fraction"), "offset points",
            rotation=90, va="top", fontsize=8, color=color,
        )  # fmt: skip


def _thinned(curve: Curve, kind: str) -> tuple[list[float], list[float]]:
    """Costs and losses with no more points than can be told apart."""
    kept = extremes(np.asarray(curve.losses, np.float64), MOST_POINTS // 2)
    return [curve.costs[kind][place] for place in kept], [curve.losses[place] for place in kept]


def _limit(panel: "Axes", curves: Sequence[Curve]) -> None:
    """Room for what happens after the steep beginning, which goes out of the top of the panel."""
    late = [
        loss
        for curve in curves
        for loss, tokens in zip(curve.losses, curve.tokens, strict=True)
        if tokens >= 0.05 * curve.tokens[-1]
    ]
    if late:
        low, high = min(late), max(late)
        margin = 0.06 * (high - low) or 0.1
        panel.set_ylim(low - 2 * margin, high + margin)


def _draw_speedup(panel: "Axes", color: str, found: dict[str, Any], baseline: Curve, run: Curve, line: int) -> None:
    """A dotted line at the loss of a speedup, from where `run` reaches it to where `baseline` does.

    Labels stand in `line` 0, 1, ... below, so that those of several runs do not cover each other.
    """
    crossings = (first_crossing(curve.costs["flops"], curve.losses, found["loss"]) for curve in (run, baseline))
    ends = [spent for spent in crossings if spent is not None]
    levels = [found["loss"]] * len(ends)
    panel.plot(ends, levels, ":", color=color, linewidth=1.2)
    panel.plot(ends, levels, "D", color="white", markeredgecolor=color, markersize=5, zorder=4)
    panel.annotate(
        f"speedup {100 * found['flops']:.0f} %", (sum(ends) / len(ends), 0), (0, 4 + 11 * line),
        ("data", "axes fraction"), "offset points", ha="center", va="bottom", fontsize=8, color=color,
    )  # fmt: skip
