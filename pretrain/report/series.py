"""Logged figures as a page holds them: thinned out where there are more than it can draw, with every peak kept."""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.report.curve import Curve
from pretrain.report.logged import LoggedRun
from pretrain.report.panels import AXES, COUNTS

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

BUCKETS = 900
"""Stretches of a run of which the lowest and the highest value are kept, where one run is shown alone."""
FEWEST_BUCKETS = 250
MOST_MARKS = 400
DIGITS = 7
"""Significant digits of a value in the page; it shows fewer."""


def buckets(n_runs: int) -> int:
    """How many stretches each of `n_runs` is cut into: a page of many runs holds less of each."""
    return max(FEWEST_BUCKETS, round(BUCKETS / n_runs**0.5))


def extremes(values: Floats, count: int) -> Rows:
    """The places of the first and the last of `values` (n,), and of the lowest and highest in each of `count` stretches
    of equal length; all places where there are no more than two for each. NaN counts as neither, and is left out.
    """
    places = np.flatnonzero(~np.isnan(values))
    if len(places) > 2 * count:
        known = values[places]
        width = -(-len(known) // count)
        padded = np.concatenate([known, np.full(-len(known) % width, known[-1])]).reshape(-1, width)
        starts = np.arange(len(padded)) * width
        found = [[0, len(known) - 1], starts + padded.argmin(1), starts + padded.argmax(1)]
        places = places[np.unique(np.minimum(np.concatenate(found), len(known) - 1))]
    return places


def without_flats(places: Rows, values: Floats) -> Rows:
    """Leave out what lies within a stretch of equal values, whose ends draw it whole."""
    shown = values[places]
    inner = (shown[1:-1] == shown[:-2]) & (shown[1:-1] == shown[2:])
    return places[np.concatenate([[True], ~inner, [True]])] if len(places) > 2 else places


def run_series(run: LoggedRun, mean: Curve, count: int) -> dict[str, Any]:
    """The figures of a run: `x` by axis and `lines` by tag, whose "at" are places in `x`, each the distance to the one
    before; `mean` is the smoothed training loss, the line "mean". Marks are places, growths have a place on each axis.
    """
    records = run.records
    tags = _tags(records)
    columns = {tag: _column(records, tag) for tag in tags}
    steps = np.array([record["step"] for record in records], np.float64)
    axes = {"step": steps}
    for name, tag in AXES.items():
        if tag in columns and not np.isnan(columns[tag]).all():
            axes[name] = _filled(columns[tag], steps)
    shown = {
        tag: without_flats(extremes(columns[tag], count), columns[tag]) for tag in tags if tag not in AXES.values()
    }
    shown = {tag: places for tag, places in shown.items() if len(places)}
    if mean.losses:
        # The loss and its mean have their points at the same steps, so that both are read at one.
        columns["mean"] = _mean_column(columns, mean)
        both = np.union1d(shown["train/loss"], extremes(columns["mean"], count))
        shown["train/loss"] = both[~np.isnan(columns["train/loss"][both])]
        shown["mean"] = both[~np.isnan(columns["mean"][both])]
    marks = {name: _rises(columns[tag])[:MOST_MARKS] for name, tag in COUNTS.items() if tag in columns}
    rows = np.unique(np.concatenate([[0, len(steps) - 1], *shown.values(), *marks.values()]).astype(np.int64))
    return {
        "x": {name: _rounded(values[rows], 10) for name, values in axes.items()},
        "lines": {
            tag: {"at": _distances(np.searchsorted(rows, places)), "y": _rounded(columns[tag][places], DIGITS)}
            for tag, places in shown.items()
        },
        "marks": {name: np.searchsorted(rows, places).tolist() for name, places in marks.items() if len(places)},
        "growth": [{"text": text, "x": _at_tokens(tokens, axes)} for tokens, text in run.growth("tokens")],
    }


def _tags(records: Sequence[dict[str, Any]]) -> list[str]:
    """The figures that any record has."""
    found: set[str] = set()
    for record in records:
        if not found.issuperset(record):
            found.update(record)
    return sorted(found - {"step"})


def _column(records: Sequence[dict[str, Any]], tag: str) -> Floats:
    """A figure of every record, NaN where it has none or none that is finite."""
    try:
        return np.array(list(map(itemgetter(tag), records)), np.float64)
    except KeyError:
        return np.array([record.get(tag) for record in records], np.float64)


def _filled(values: Floats, steps: Floats) -> Floats:
    """An axis with no place left out: between two steps that have logged it, it is linear."""
    known = ~np.isnan(values)
    return np.interp(steps, steps[known], values[known])


def _mean_column(columns: dict[str, Floats], mean: Curve) -> Floats:
    """The smoothed loss as a column: its points are the last of those that have a loss and tokens."""
    found = np.full(len(columns["train/loss"]), np.nan)
    tokens = np.nan_to_num(columns[AXES["tokens"]])
    logged = np.flatnonzero(~np.isnan(columns["train/loss"]) & (tokens != 0))
    found[logged[-len(mean.losses) :]] = mean.losses
    return found


def _rises(counts: Floats) -> Rows:
    """The places at which a count is more than at the one before that has it."""
    places = np.flatnonzero(~np.isnan(counts))
    return places[1:][np.diff(counts[places]) > 0]


def _at_tokens(tokens: float, axes: dict[str, Floats]) -> dict[str, float]:
    """A place in the order of training on every axis."""
    if "tokens" not in axes:
        return {}
    return {name: float(np.interp(tokens, axes["tokens"], values)) for name, values in axes.items()}


def _distances(places: Rows) -> list[int]:
    return np.diff(places, prepend=0).tolist()


def _rounded(values: Iterable[float], digits: int) -> list[float | int]:
    """Values as short as `digits` significant digits allow; whole numbers up to 2**53 stay as they are."""
    found = []
    for value in values:
        short = float(f"{value:.{digits}g}")
        whole = value == int(value) and abs(value) < 2**53
        found.append(int(value) if whole else short)
    return found
