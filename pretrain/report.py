"""Runs as a person would look at them: losses over tokens in one picture, and the figures side by side."""

import html
import json
from pathlib import Path
from typing import Any

from model.errors import UserError

COLUMNS = {
    "step": "steps",
    "tokens_seen": "tokens",
    "parameters": "parameters",
    "val_loss": "held-out loss",
    "bits_per_byte": "bits per byte",
    "flops": "FLOPs",
    "tokens_per_second": "tokens/s",
    "train_seconds": "training s",
    "peak_memory_bytes": "peak bytes",
    "device": "device",
}
SMOOTHING = 0.9
"""Weight of the past in the drawn training loss (exponential mean over logged steps)."""


def write_report(runs: list[Path], out: Path) -> list[Path]:
    """Write `loss.png`, `table.json` and `index.html` to `out` and return them; UserError names what is missing."""
    names = _names(runs)
    records = [_records(run) for run in runs]
    table = [{"run": name, **_summary(run)} for name, run in zip(names, runs, strict=True)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.json").write_text(json.dumps(table, indent=1) + "\n")
        (out / "index.html").write_text(_page(table), encoding="utf-8")
        _draw(names, records, out / "loss.png")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    return [out / name for name in ("loss.png", "table.json", "index.html")]


def _names(runs: list[Path]) -> list[str]:
    """What each run is called: its folder's name, or its path as given where two folders have the same name."""
    names = [run.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]


def _records(run: Path) -> list[dict[str, Any]]:
    """The logged steps; a last line that a kill has cut short is left out."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        raise UserError(f"{run}: holds no metrics.jsonl; give the folder of a run") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{run}/metrics.jsonl: line {number} is not JSON; delete that line") from None
    return records


def _summary(run: Path) -> dict[str, Any]:
    try:
        summary = json.loads((run / "summary.json").read_text())
    except OSError:
        raise UserError(f"{run}: holds no summary.json; its training has not come to an end yet") from None
    return {key: summary[key] for key in COLUMNS}


def _draw(names: list[str], runs: list[list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for index, (name, records) in enumerate(zip(names, runs, strict=True)):
        color = f"C{index}"
        tokens, losses = _curve(records, "train/loss")
        left.plot(tokens, losses, color=color, alpha=0.25, linewidth=0.8)
        left.plot(tokens, _smooth(losses), color=color, label=name)
        left.plot(*_curve(records, "val/loss"), "o", color=color)
        right.plot(*_curve(records, "val/bits_per_byte"), "o-", color=color, label=name)
    left.set(xlabel="tokens", ylabel="loss (nats per token)", title="training loss, held-out loss as dots")
    right.set(xlabel="tokens", ylabel="bits per byte", title="held-out text")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    # No date, no version of matplotlib: equal runs give equal bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _curve(records: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Tokens seen and the value of `key` wherever both are logged; a null stands for a value that was not finite."""
    at = {record["step"]: record["train/tokens_seen"] for record in records if "train/tokens_seen" in record}
    points = [(at[r["step"]], r[key]) for r in records if r.get(key) is not None and r["step"] in at]
    return [x for x, _ in points], [y for _, y in points]


def _smooth(values: list[float]) -> list[float]:
    """Exponential mean, corrected for its start at zero."""
    mean, smoothed = 0.0, []
    for count, value in enumerate(values, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smoothed.append(mean / (1 - SMOOTHING**count))
    return smoothed


def _page(table: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{title}</th>" for title in ("run", *COLUMNS.values()))
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(row[key]))}</td>" for key in ("run", *COLUMNS)) + "</tr>"
        for row in table
    )
    style = "body{font:15px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:right}img{max-width:100%}"
    return (
        f"<!doctype html><meta charset=utf-8><title>Sparlow runs</title><style>{style}</style>"
        f"<h1>Runs</h1><img src=loss.png alt='loss over tokens'><table><tr>{head}</tr>{rows}</table>\n"
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if value < 1e4 or value >= 1e9 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
