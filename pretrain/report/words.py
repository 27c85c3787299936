"""A report in words: the page, and what is printed; all from the rows of `table.json`."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from pretrain.report.curve import KINDS
from pretrain.report.logged import LoggedRun

COLUMNS = {
    "step": "steps",
    "tokens_seen": "tokens",
    "parameters": "parameters",
    "stages": "layers",
    "val_loss": "held-out loss",
    "bits_per_byte": "bits per byte",
    "flops": "FLOPs",
    "flops_dense_equivalent": "dense-equivalent FLOPs",
    "tokens_per_second": "tokens/s",
    "train_seconds": "training s",
    "peak_memory_bytes": "peak bytes of tensors",
    "peak_resident_bytes": "peak bytes of the process",
    "device": "device",
}
"""Keys of summary.json that a row of the table takes over, and their titles; a key that is missing is null."""
SPEEDUP_TITLES = ("run", "at the lowest loss that both reach", "FLOPs", "dense-equivalent FLOPs", "tokens")
STYLE = (
    "body{font:15px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:right}img{max-width:100%}"
    "table{border-collapse:collapse}tr+tr{border-top:1px solid #ddd}th{font-weight:600}"
)


def speedup_lines(table: Sequence[dict[str, Any]]) -> list[str]:
    """The speedups as an aligned table for a terminal; empty where there is none."""
    rows = [SPEEDUP_TITLES, *(_speedup_cells(row) for row in table if row["speedup"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines if len(rows) > 1 else []


def unlike_words(run: LoggedRun, baseline: LoggedRun) -> str:
    """Why two runs on unlike data have no speedup, and how they compare where they do."""
    why = f"it was trained on other data or with another tokenizer than {baseline.name}, so losses do not compare"
    ours, theirs = _bits_over_bytes(run), _bits_over_bytes(baseline)
    if not run.data.same_held_out_text(baseline.data):
        return f"{why}, and the held-out texts are not known to be the same, so bits per byte are not compared either"
    if ours is None or theirs is None:
        return f"{why}, and not both have logged bits per byte"
    return f"{why}; on the same held-out text {ours}, against {theirs} of {baseline.name}"


def _bits_over_bytes(run: LoggedRun) -> str | None:
    bytes_of_text, bits = run.figures("val/bits_per_byte", "bytes")
    return f"{bits[-1]:.4f} bits per byte after {bytes_of_text[-1]:.4g} bytes of text" if bits else None


def page(table: Sequence[dict[str, Any]], notes: Sequence[str], window: int) -> str:
    """`index.html`: the picture, the speedups with their grids, what was left out, and the figures of every run."""
    figures = [
        [row["run"], *(_layers(row[key]) if key == "stages" else _cell(row[key]) for key in COLUMNS)] for row in table
    ]
    found = [row for row in table if row["speedup"]]
    parts = [
        f"<!doctype html><meta charset=utf-8><title>Sparlow runs</title><style>{STYLE}</style>",
        "<h1>Runs</h1><img src=loss.png alt='losses over tokens and FLOPs'>",
        f"<p>Training losses are smoothed over the last {window:,} tokens.</p>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        _table(("run", *COLUMNS.values()), figures),
    ]
    if found:
        parts += [
            "<h2>Speedup at equal training loss</h2>",
            f"<p>Cost of {html.escape(found[0]['speedup']['baseline'])} divided by cost of the run, minus 1, each "
            "where its smoothed training loss first comes down to the loss; all growth stages count.</p>",
            _table(SPEEDUP_TITLES, map(_speedup_cells, found)),
        ]
    for row in found:
        grid = [[f"{at['loss']:.3f}", *(_percent(at[kind]) for kind in KINDS)] for at in row["speedup"]["curve"]]
        parts.append(f"<h3>{html.escape(row['run'])}</h3>" + _table(("loss", *SPEEDUP_TITLES[2:]), grid))
    return "\n".join(parts) + "\n"


def _speedup_cells(row: dict[str, Any]) -> tuple[str, ...]:
    found = row["speedup"]
    part = 1 / (1 + found["flops"])
    words = f"reaches loss {found['loss']:.3f} with {part:.2f} of the FLOPs of {found['baseline']}: speedup "
    return (row["run"], words + _percent(found["flops"]), *(_percent(found[kind]) for kind in KINDS))


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.0f} %"


def _layers(stages: list[dict[str, Any]] | None) -> str:
    return " → ".join(str(stage["n_layers"]) for stage in stages) if stages else "-"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if value < 1e4 or value >= 1e9 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
