"""The settings of runs side by side, and which of them differ."""

from collections.abc import Iterator, Sequence
from typing import Any

from pretrain.report.logged import LoggedRun
from pretrain.report.words import table_html

APART = ("run.dir",)
"""Keys that differ between any two runs, and say nothing."""


def flattened(tables: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each key with the names of its tables before it, and its value in words."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value).lower() if isinstance(value, bool) else str(value)


def differing(runs: Sequence[LoggedRun]) -> list[list[str]]:
    """Rows of a key and its value in each run, for the keys in which runs differ; "-" where one has no such key."""
    return [row for row in _rows(runs) if len(set(row[1:])) > 1 and row[0] not in APART]


def _rows(runs: Sequence[LoggedRun]) -> list[list[str]]:
    settings = [dict(flattened(run.settings)) for run in runs]
    keys = dict.fromkeys(key for table in settings for key in table)
    return [[key, *(table.get(key, "-") for table in settings)] for key in keys]


def settings_tables(runs: Sequence[LoggedRun]) -> list[str]:
    """What differs, where there is more than one run that tells, and below it everything."""
    if not any(run.settings for run in runs):
        return []
    parts, titles = [], ("key", *(run.name for run in runs))
    told = [run for run in runs if run.settings]
    if len(told) > 1:
        rows = differing(told)
        words = "<p>They differ in nothing.</p>"
        parts.append(table_html(("key", *(run.name for run in told)), rows, "settings") if rows else words)
    everything = table_html(titles, _rows(runs), "settings")
    parts.append(f"<details><summary>All settings</summary>{everything}</details>")
    return parts
