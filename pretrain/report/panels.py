"""What a report draws of a run: a panel for what belongs together, and one for whatever else was logged."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

AXES = {
    "tokens": "train/tokens_seen",
    "flops": "train/flops",
    "flops_dense_equivalent": "train/flops_dense_equivalent",
    "seconds": "perf/train_seconds",
}
"""What the panels can be drawn over besides steps, and where the logged steps have it."""
COUNTS = {"skipped": "train/skipped_steps", "spikes": "guard/spikes", "rewinds": "guard/rewinds"}
"""What is marked in the panel of the loss: steps at which these counts rise."""


@dataclass(frozen=True)
class Panel:
    """Lines over what training has cost."""

    title: str
    unit: str
    tags: tuple[str, ...]
    """Logged figures; one with `*` stands for all that fit, each a line of its own."""
    about: str = ""
    """How to read it, in a sentence."""
    labels: tuple[str, ...] = ()
    """What the lines are called; the text that `*` stands for where this is empty."""
    log: bool = False
    """Whether the values' axis is logarithmic."""
    share: bool = False
    """Whether values from 0 to 1 are written in percent."""
    dots: bool = False
    """Whether values are few and far between."""
    kind: str = ""
    """loss: with means, marks and a switch to a logarithmic axis. other: of what nobody has made a panel for."""


PANELS = (
    Panel(
        "Training loss", "nats per token", ("train/loss",), "Line: trailing mean. Faint: each logged step.", kind="loss"
    ),
    Panel("Held-out loss", "nats per token", ("val/loss",), "On text that is never trained on.", dots=True),
    Panel(
        "Bits per byte", "bits per byte of text", ("val/bits_per_byte",),
        "The held-out loss, whatever the tokenizer.", dots=True,
    ),
    Panel("Learning rate", "", ("train/lr",)),
    Panel(
        "Gradient norm", "L2 norm before clipping", ("train/grad_norm", "train/grad_norm_projected"),
        "A norm that rises for long, or jumps, comes before a loss that does.",
        ("whole", "of the projected gradient"), log=True,
    ),
    Panel("Speed", "tokens per second", ("perf/tokens_per_s",), "Of the logged step alone."),
    Panel(
        "Time of a step", "ms", ("perf/step_ms_p50", "perf/step_ms_p90", "perf/step_ms_p99"),
        "So many of the last 200 steps were no slower.", ("p50", "p90", "p99"), log=True,
    ),
    Panel(
        "Waiting", "share of the time", ("perf/data_wait", "perf/checkpoint_wait"),
        "For data: of the logged step. For checkpoints: since the step logged before.", ("data", "checkpoints"),
        share=True,
    ),
    Panel("Model FLOPs utilisation", "share of the device's peak", ("perf/mfu",), share=True),
    Panel(
        "Memory over time", "GiB, peak so far", ("mem/peak_gib", "mem/peak_resident_gib"), "",
        ("tensors on the GPU", "the process in host memory"),
    ),
    Panel("Held-out loss by source", "nats per token", ("val/*/loss",), dots=True),
    Panel("Bits per byte by source", "bits per byte of text", ("val/*/bits_per_byte",), dots=True),
    Panel("Tokens by source", "tokens", ("data/*/tokens",)),
    Panel("Epochs by source", "times that the source was read", ("data/*/epochs",)),
    Panel(
        "Effective rank of the weights", "RankMe", ("spectrum/weight/*/effective_rank",),
        "Mean over the matrices of a kind; it falls where a few directions take over.", dots=True,
    ),
    Panel(
        "Stable rank of the weights", "squared Frobenius norm over squared largest singular value",
        ("spectrum/weight/*/stable_rank",), dots=True,
    ),
    Panel("Effective rank of B A", "RankMe", ("spectrum/low_rank/*/effective_rank",), dots=True),
    Panel("Effective rank of S", "RankMe", ("spectrum/sparse/*/effective_rank",), dots=True),
    Panel(
        "Overlap of new bases with old ones", "‖P_oldᵀ P_new‖² / rank", ("optimizer/refresh_overlap",),
        "1: the same subspace; rank over width is what chance gives.",
    ),
)  # fmt: skip


MOST_LINES = 4
"""Lines of a panel that several runs share, each run having a colour and each figure a pattern of dashes."""


def panels_of(tags: Collection[str], several: bool = False) -> list[Panel]:
    """List the panels that have anything to show of `tags`, with the figures they show; then one for each tag left.

    With `several` runs, a panel of many lines becomes one for each.
    """
    found, left = [], {*tags} - {*AXES.values(), *COUNTS.values(), "step"}
    for panel in PANELS:
        lines = [(tag, label) for pattern, label in _labelled(panel) for tag, label in _matching(pattern, label, tags)]
        left -= {tag for tag, _ in lines}
        if several and len(lines) > MOST_LINES:
            found += [
                replace(panel, title=f"{panel.title}: {label}", tags=(tag,), labels=(label,)) for tag, label in lines
            ]
        elif lines:
            found.append(replace(panel, tags=tuple(t for t, _ in lines), labels=tuple(label for _, label in lines)))
    return [*found, *(Panel(tag, "", (tag,), labels=(tag,), kind="other") for tag in sorted(left))]


def _labelled(panel: Panel) -> list[tuple[str, str]]:
    return list(zip(panel.tags, panel.labels or [panel.title] * len(panel.tags), strict=True))


def _matching(pattern: str, label: str, tags: Collection[str]) -> list[tuple[str, str]]:
    """The tags that fit a pattern, and what their lines are called."""
    if "*" not in pattern:
        return [(pattern, label)] if pattern in tags else []
    fits = re.compile(re.escape(pattern).replace(r"\*", "(.+)"))
    return [(tag, match[1]) for tag in sorted(tags) if (match := fits.fullmatch(tag))]
