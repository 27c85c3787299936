"""Memory of runs as bars: what was planned, item by item, and what was measured."""

import html
from collections.abc import Sequence

from pretrain.loop.records import is_figure
from pretrain.report.logged import LoggedRun

GIB = 2**30
MEASURED = {
    "peak_memory_bytes": "measured: peak of tensors",
    "peak_reserved_bytes": "measured: taken by the allocator",
    "peak_resident_bytes": "measured: process in host memory",
}
"""Keys of summary.json, and what they are called."""
LOGGED = {"peak_memory_bytes": "mem/peak_gib", "peak_resident_bytes": "mem/peak_resident_gib"}
"""Where the logged steps have them, in GiB."""
COLORS = 8


def memory_blocks(runs: Sequence[LoggedRun]) -> list[str]:
    """A block for each run that knows anything of its memory."""
    found = [(run, planned_items(run), _measured(run)) for run in runs]
    largest = max((max([sum(items.values()), *measured.values()]) for _, items, measured in found), default=0)
    if not largest:
        return []
    names = {name: index for index, name in enumerate(dict.fromkeys(name for _, items, _ in found for name in items))}
    blocks = [
        _block(run, items, measured, largest, names, len(runs) > 1)
        for run, items, measured in found
        if items or measured
    ]
    words = (
        "Per process, on one scale. Planned: the tensors at the worst moment of a step. The size of a process is more "
        "than its tensors: it has Python and libraries in it, and on a GPU's machine no tensors of the GPU."
    )
    return [f'<p class="soft">{words}</p>', *blocks]


def planned_items(run: LoggedRun) -> dict[str, float]:
    """Planned bytes by item, largest first, as `run.json` has them; empty where it does not."""
    planned = run.about.get("planned_memory")
    items = planned.get("items") if isinstance(planned, dict) else None
    if not isinstance(items, dict):
        return {}
    sizes = {str(name): size for name, size in items.items() if is_figure(size) and size > 0}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _measured(run: LoggedRun) -> dict[str, float]:
    """Bytes that were measured, by key of summary.json."""
    found = {}
    for key in MEASURED:
        value = run.summary.get(key)
        if value is None and key in LOGGED:
            logged = [record[LOGGED[key]] for record in run.records[-1:] if is_figure(record.get(LOGGED[key]))]
            value = logged[0] * GIB if logged else None
        if value:
            found[key] = value
    return found


def _block(
    run: LoggedRun,
    items: dict[str, float],
    measured: dict[str, float],
    largest: float,
    names: dict[str, int],
    named: bool,
) -> str:
    rows = []
    swatches = ""
    if items:
        parts = "".join(
            f'<i style="flex-grow:{size:.0f};background:{_color(names[name])}" '
            f'title="{html.escape(_called(name))} {_gib(size)}"></i>'
            for name, size in items.items()
        )
        total = sum(items.values())
        rows.append(
            _row("planned", f'<div class="bar" style="width:{100 * total / largest:.2f}%">{parts}</div>', total)
        )
        keys = "".join(
            f'<span><i class="dot" style="background:{_color(names[name])}"></i>{html.escape(_called(name))} '
            f"{_gib(size)}</span>"
            for name, size in items.items()
        )
        swatches = f'<div class="swatches">{keys}</div>'
    for key, size in measured.items():
        bar = f'<div class="bar measured" style="width:{100 * size / largest:.2f}%"><i style="flex-grow:1"></i></div>'
        rows.append(_row(MEASURED[key], bar, size))
    title = f"<h3>{html.escape(run.name)}</h3>" if named else ""
    return f'<div class="block">{title}{"".join(rows)}{swatches}</div>'


def _row(name: str, bar: str, size: float) -> str:
    return f'<div class="bar-row"><span>{name}</span><div>{bar}</div><span>{_gib(size)}</span></div>'


def _called(name: str) -> str:
    return name.replace("_", " ")


def _color(index: int) -> str:
    return f"var(--c{index % COLORS})"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.01 * GIB else f"{size / 2**20:.2f} MiB"
