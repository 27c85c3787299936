"""The tables of a comparison: Markdown to paste, and CSV with more digits and columns."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from pretrain.compare.progress import Progress
from pretrain.compare.suite import Budget

COLUMNS = (
    *("equal", "method", "status", "best_rate", "at_edge", "steps", "seeds", "loss", "spread", "bits_per_byte"),
    *("difference_percent", "parameters", "trainable_parameters", "linear_parameters", "planned_state_bytes"),
    *("planned_bytes", "peak_memory_bytes", "flops", "flops_dense_equivalent", "tokens", "tokens_per_second"),
)
HEADER = ("method", "rate", "loss", "±", "seeds", "vs baseline", "linears", "memory", "FLOPs", "tokens/s")
LEGEND = (
    "Loss: held-out, nats per token, mean and sample standard deviation (±) over seeds at the best rate."
    "\nLinears: their parameters. Memory: weights, gradients and optimizer state, planned. FLOPs: training, of one run."
)
OF_THE_MODEL = (
    *("parameters", "trainable_parameters", "linear_parameters"),
    *("planned_state_bytes", "planned_bytes"),
)
"""Figures that all runs of a method share."""
MEANS = {
    "bits_per_byte": "bits_per_byte",
    "peak_memory_bytes": "peak_memory_bytes",
    "flops": "flops",
    "flops_dense_equivalent": "flops_dense_equivalent",
    "tokens": "tokens_seen",
    "tokens_per_second": "tokens_per_second",
}
"""Columns that are means over the seeds that have a loss, and their keys in the records of runs."""
UNLIKE = {"commit": "commits", "dtype": "precisions (train.dtype)", "device": "devices"}
"""Keys of records that all runs should have alike, though not the suite but the code or the machine decides them."""

Entries = dict[str, dict[str, Any]]
"""Records of runs, by their folders."""


def rows(progress: Progress, entries: Entries, budget: Budget) -> list[dict[str, Any]]:
    """A row for each method that has a run, by loss, with the columns of the CSV."""
    ranking = progress.ranking(budget)
    name = progress.suite.suite.baseline
    baseline = next(one for one in ranking if one.method.name == name)
    found = []
    for standing in ranking:
        runs = standing.runs if standing.losses else progress.tuning(standing.method)
        own = [entries[str(run.folder)] for run in runs if str(run.folder) in entries]
        if not own:
            continue
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {key: own[0][key] for key in OF_THE_MODEL}
        row |= {"equal": budget, "method": standing.method.name, "seeds": len(standing.losses)}
        row["status"] = "done" if standing.losses else "not finished" if standing.best else own[-1]["status"]
        if standing.losses and standing.best:
            done = [one for one in own if one["status"] == "done"]
            row |= {column: _mean([one[key] for one in done]) for column, key in MEANS.items()}
            row |= {
                "best_rate": standing.best.rate,
                "at_edge": standing.at_edge,
                "steps": runs[0].steps,
                "loss": standing.mean,
                "spread": standing.spread,
                "difference_percent": standing.percent_over(baseline),
            }
        found.append(row)
    return found


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def as_csv(found: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def as_markdown(progress: Progress, entries: Entries, found: dict[Budget, list[dict[str, Any]]]) -> str:
    """A table for each of suite.equal, and what there is to say of some of their rows."""
    blocks = []
    for budget, table in found.items():
        lines = [_title(progress, budget), "", _line(HEADER), _line(["---", *["---:"] * (len(HEADER) - 1)])]
        lines += [_line(_cells(row, progress.suite.suite.baseline)) for row in table]
        blocks.append("\n".join(lines))
    notes = list(dict.fromkeys(_notes(progress, entries, found)))
    blocks.append(LEGEND)
    if notes:
        blocks.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(blocks) + "\n"


def _title(progress: Progress, budget: Budget) -> str:
    baseline = progress.methods[progress.suite.suite.baseline]
    steps = baseline.config.schedule.total_steps
    if budget == "tokens":
        return f"Equal tokens: {steps} steps, {steps * baseline.config.tokens_per_update:,} tokens."
    return f"Equal training FLOPs: those of {baseline.name} over {steps} steps."


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: dict[str, Any], baseline: str) -> Iterator[str]:
    yield row["method"]
    if row["loss"] is None:
        yield from ["", row["status"], "", "0", ""]
    else:
        yield f"{row['best_rate']:g}{'*' if row['at_edge'] else ''}"
        yield f"{row['loss']:.4f}"
        yield "" if row["spread"] is None else f"{row['spread']:.4f}"
        yield str(row["seeds"])
        difference = row["difference_percent"]
        yield "baseline" if row["method"] == baseline else "" if difference is None else f"{difference:+.2f} %"
    yield _count(row["linear_parameters"])
    yield _bytes(row["planned_bytes"])
    yield "" if row["flops"] is None else f"{row['flops']:.3g}"
    yield "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}"


def _count(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number / 1e6:.3g} M" if number < 1e9 else f"{number / 1e9:.3g} B"


def _bytes(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number / 1e6:.3g} MB" if number < 1e9 else f"{number / 1e9:.3g} GB"


def _notes(progress: Progress, entries: Entries, found: dict[Budget, list[dict[str, Any]]]) -> Iterator[str]:
    rows_ = [row for table in found.values() for row in table]
    if any(row["at_edge"] and row["loss"] is not None for row in rows_):
        yield "\\* the best rate is at the edge of its list: a better one may lie beyond"
    for one in entries.values():
        if one["status"] != "done":
            yield f"{one['method']}, lr {one['rate']:g}, seed {one['seed']}: {one['status']}: {one['reason']}"
    for key, what in UNLIKE.items():
        differ = sorted({str(one[key]) for one in entries.values() if one["status"] == "done" and one.get(key)})
        if len(differ) > 1:
            yield f"the runs are of several {what}: {', '.join(differ)}; results.json says which"
    for (name, budget), sentence in progress.refused.items():
        yield f"{name}: not run at equal {budget}: {sentence}"
