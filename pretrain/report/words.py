"""A report in words: its tables and what is printed, all from the rows of `table.json`."""

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


def speedup_lines(table: Sequence[dict[str, Any]]) -> list[str]:
    """The speedups as an aligned table for a terminal; empty where there is none."""
    rows = [SPEEDUP_TITLES, *(speedup_cells(row) for row in table if row["speedup"])]
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


def speedup_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """What a run saves, in the order of SPEEDUP_TITLES."""
    found = row["speedup"]
    part = 1 / (1 + found["flops"])
    words = f"reaches loss {found['loss']:.3f} with {part:.2f} of the FLOPs of {found['baseline']}: speedup "
    return (row["run"], words + percent(found["flops"]), *(percent(found[kind]) for kind in KINDS))


def table_html(titles: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """A table of texts, which may contain anything, for a page."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    opening = f'<div class="scroll"><table class="{kind}">' if kind else '<div class="scroll"><table>'
    return f"{opening}<tr>{head}</tr>{''.join(body)}</table></div>"


def short(value: float | None) -> str | None:
    """A count to three digits, in thousands, millions, billions or trillions; None for None."""
    if value is None:
        return None
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{2 if value < 10 * size else 1 if value < 100 * size else 0}f} {unit}"
    return f"{value:.0f}"


def percent(part: float | None) -> str:
    """A part in percent."""
    return "-" if part is None else f"{100 * part:.0f} %"


def layers_cell(stages: list[dict[str, Any]] | None) -> str:
    """The layers of the stages of a run."""
    return " → ".join(str(stage["n_layers"]) for stage in stages) if stages else "-"


def cell(value: Any) -> str:
    """A figure as a cell of a table has it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if value < 1e4 or value >= 1e9 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
