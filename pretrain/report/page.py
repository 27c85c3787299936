"""`index.html`: runs to look at, in one file that needs no server and no network.

What it shows is in the page as JSON, drawn by the scripts in `page/`; its policy lets no other script run, whatever a
text that a model or a user has written contains, and lets it ask no other machine for anything.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pretrain.loop.samples import read_samples
from pretrain.report.curve import KINDS, Curve
from pretrain.report.logged import LoggedRun
from pretrain.report.memory import memory_blocks
from pretrain.report.panels import panels_of
from pretrain.report.series import buckets, run_series
from pretrain.report.settings import settings_tables
from pretrain.report.words import (
    COLUMNS,
    SPEEDUP_TITLES,
    cell,
    layers_cell,
    percent,
    short,
    speedup_cells,
    table_html,
)

PARTS = Path(__file__).with_name("page")
SCRIPTS = ("numbers.js", "chart.js", "main.js")
MOST_SAMPLES = 400
"""Texts of a run that its page holds; the rest is left out evenly."""
MOST_SAMPLE_CHARACTERS = 4000
GIB = 2**30


def page(
    runs: Sequence[LoggedRun],
    smoothed: Sequence[Curve],
    table: Sequence[dict[str, Any]],
    notes: Sequence[str],
    window: int,
) -> str:
    """The whole page; `smoothed` over `window` tokens, the rows of `table` and `runs` in one order."""
    count = buckets(len(runs))
    series = [_run(run, curve, count) for run, curve in zip(runs, smoothed, strict=True)]
    tags = {tag for run in series for tag in run["lines"]}
    panels = [vars(panel) for panel in panels_of(tags - {"mean"}, len(runs) > 1)]
    script = '"use strict";\n(() => {\n' + "\n".join(map(_part, SCRIPTS)) + "\n})();\n"
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return "\n".join(
        [
            *_head(f"{title} - Sparlow", script),
            "<body>",
            f"<header><h1>{html.escape(title)}</h1>{_lead(runs, table, window)}{_notes(notes)}</header>",
            f"<section>{_cards(runs[0], table[0]) if len(runs) == 1 else _figures(table)}</section>",
            '<nav id="tools" aria-label="What the panels show">'
            '<div id="axes" role="group" aria-label="drawn over"></div>'
            '<div id="runs" role="group" aria-label="runs shown"></div>'
            '<button id="unzoom" type="button" hidden>whole run</button></nav>',
            '<main><p class="undrawn soft">The panels are drawn by a script, which this browser has not run; '
            "loss.png beside this page shows the losses.</p>"
            '<div id="panels" class="panels"></div>'
            "<details><summary>Everything else that was logged</summary>"
            '<div id="others" class="panels"></div></details>'
            "</main>",
            '<section><h2>Samples</h2><div id="samples" class="samples"></div></section>',
            _speedups(table),
            _section("Memory", memory_blocks(runs)),
            _section("Settings", settings_tables(runs)),
            _section("Figures", [_own_figures(table[0])] if len(runs) == 1 else []),
            _section("Versions and hardware", [_machines(runs)]),
            "<footer>Written by <code>sparlow report</code>. Drag across a panel to look closer, double-click to see "
            "the whole run; arrow keys read values.</footer>",
            '<div id="spoken" class="spoken" role="status" aria-live="polite"></div>',
            f'<script type="application/json" id="data">{_json({"runs": series, "panels": panels})}</script>',
            f"<script>{script}</script>",
            "</body></html>\n",
        ]
    )


def _head(title: str, script: str) -> Iterable[str]:
    """The policy allows this very script, by its hash, and no request at all."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{html.escape(title)}</title><style>{_part('page.css')}</style></head>"


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that no text in it can end, as HTML would at `</script>` or `<!--`."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # A lone surrogate is no text that a file could hold.
    text = text.encode("utf-8", "replace").decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _run(run: LoggedRun, curve: Curve, count: int) -> dict[str, Any]:
    samples = read_samples(run.path / "samples.jsonl", run.records[-1]["step"])
    every = -(-len(samples) // MOST_SAMPLES) or 1
    kept = samples[::-every][::-1]  # the last one is among them
    texts = [{**sample, "text": str(sample["text"])[:MOST_SAMPLE_CHARACTERS]} for sample in kept]
    return {"name": run.name, "samples": texts, **run_series(run, curve, count)}


def _lead(runs: Sequence[LoggedRun], table: Sequence[dict[str, Any]], window: int) -> str:
    """What is shown, below the title."""
    words = f"Training losses are smoothed over the last {window:,} tokens."
    if len(runs) == 1:
        device, layers = table[0]["device"], layers_cell(table[0]["stages"])
        where = f"{table[0]['step']:,} steps" + (f" on {device}" if device else "")
        words = f"{where}{f', {layers} layers' if layers != '-' else ''}. {words}"
    return f'<p class="soft">{html.escape(words)}</p>'


def _notes(notes: Sequence[str]) -> str:
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def _cards(run: LoggedRun, row: dict[str, Any]) -> str:
    """The figures that are asked for first."""
    tensors, process = row["peak_memory_bytes"], row["peak_resident_bytes"]
    memory = tensors if tensors is not None else process
    figures = [
        ("held-out loss", None if row["val_loss"] is None else f"{row['val_loss']:.4f}", "nats per token"),
        ("bits per byte", None if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}", ""),
        ("tokens", short(row["tokens_seen"]), ""),
        ("parameters", short(row["parameters"]), ""),
        ("training FLOPs", None if row["flops"] is None else f"{row['flops']:.3g}", ""),
        ("training time", duration(row["train_seconds"]), ""),
        ("speed", short(row["tokens_per_second"]), "tokens/s"),
        (
            "peak memory",
            None if memory is None else f"{memory / GIB:.2f}",
            "GiB of tensors" if tensors is not None else "GiB, process",
        ),
    ]
    cards = [
        f"<div><dt>{title}</dt><dd>{html.escape(value)} <small>{unit}</small></dd></div>"
        for title, value, unit in figures
        if value is not None
    ]
    return f'<dl class="cards">{"".join(cards)}</dl>'


def duration(seconds: float | None) -> str | None:
    """Seconds as people say them; None for None."""
    if seconds is None:
        return None
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _section(title: str, parts: Sequence[str]) -> str:
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>" if parts else ""


def _figures(table: Sequence[dict[str, Any]]) -> str:
    rows = [[row["run"], *(layers_cell(row[k]) if k == "stages" else cell(row[k]) for k in COLUMNS)] for row in table]
    return table_html(("run", *COLUMNS.values()), rows)


def _own_figures(row: dict[str, Any]) -> str:
    """The figures of the only run, one below the other."""
    cells = [[title, layers_cell(row[k]) if k == "stages" else cell(row[k])] for k, title in COLUMNS.items()]
    return table_html(("figure", row["run"]), cells)


def _speedups(table: Sequence[dict[str, Any]]) -> str:
    """What each run saves against the baseline at equal loss, and along the curves down to it."""
    found = [row for row in table if row["speedup"]]
    if not found:
        return ""
    parts = [
        f'<p class="soft">Cost of {html.escape(found[0]["speedup"]["baseline"])} divided by cost of the run, minus 1, '
        "each where its smoothed training loss first comes down to the loss; all growth stages count.</p>",
        table_html(SPEEDUP_TITLES, map(speedup_cells, found)),
    ]
    for row in found:
        grid = [[f"{at['loss']:.3f}", *(percent(at[kind]) for kind in KINDS)] for at in row["speedup"]["curve"]]
        along = table_html(("loss", *SPEEDUP_TITLES[2:]), grid)
        parts.append(f"<details><summary>{html.escape(row['run'])}, loss by loss</summary>{along}</details>")
    return _section("Speedup at equal training loss", parts)


def _machines(runs: Sequence[LoggedRun]) -> str:
    """Devices, processes and versions of every run."""
    rows: dict[str, list[str]] = {}
    for index, run in enumerate(runs):
        versions = run.summary.get("versions") or run.about.get("versions")
        known = {"device": run.summary.get("device"), "processes": run.about.get("processes")}
        known |= {"dtype": run.summary.get("dtype")} | (versions if isinstance(versions, dict) else {})
        for key, value in known.items():
            rows.setdefault(key, ["-"] * len(runs))[index] = "-" if value is None else str(value)
    return table_html(("", *(run.name for run in runs)), ([key, *values] for key, values in rows.items()))
