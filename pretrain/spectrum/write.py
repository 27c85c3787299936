"""The files of `sparlow spectrum`, and what it prints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from model.errors import UserError
from model.spectrum import Ranks
from pretrain.config.write import table_lines
from pretrain.spectrum.measure import Spectra
from pretrain.spectrum.picture import draw

PARTS = ("W", "BA", "S", "gradient")


def make_folder(out: Path) -> None:
    """Make the folder before the long work; UserError where that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None


def write(found: Spectra, ranks: Ranks | None, out: Path) -> list[Path]:
    """Write `table.json`, `spectra.safetensors`, `spectra.png` and, with ranks, `ranks.toml`; return them.

    The second holds the singular values of each part of each matrix as <name>.<part>. UserError where that fails.
    """
    files = [out / name for name in ("table.json", "spectra.safetensors", "spectra.png", "ranks.toml")]
    values = {f"{name}.{part}": one for name, parts in found.values.items() for part, one in parts.items()}
    try:
        files[0].write_text(as_json(found, ranks), encoding="utf-8")
        save_file({name: one.contiguous() for name, one in values.items()}, files[1])
        draw(found, files[2])
        if ranks is not None:
            files[3].write_text(ranks_toml(ranks), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    return files if ranks is not None else files[:3]


def as_json(found: Spectra, ranks: Ranks | None) -> str:
    """Return the rows, the means at every step and the suggested ranks as JSON."""
    suggested = None
    if ranks is not None:
        suggested = {"threshold": ranks.threshold, "reduction": ranks.reduction, "ranks": ranks.ranks}
    table = {"step": found.step, "matrices": found.rows, "steps": found.steps, "suggested": suggested}
    return json.dumps(table, indent=1, allow_nan=False) + "\n"


def ranks_toml(ranks: Ranks) -> str:
    """Return the ranks as a table that belongs under [linear]."""
    head = [
        f"# WeLore's rule (arXiv 2407.11239): normalised singular values of at least {ranks.threshold:.6g}, "
        f"which leaves out {ranks.reduction:.1%} of all",
    ]
    return "\n".join([*head, *table_lines("linear.ranks", ranks.ranks.items())]) + "\n"


def lines(found: Spectra, ranks: Ranks | None) -> Iterator[str]:
    """Yield the table: by matrix the stable and the effective rank of each part; then the means at every step."""
    parts = [part for part in PARTS if part in found.rows[0]]
    width = max(len(row["matrix"]) for row in found.rows)
    intruders = any("intruders" in row for row in found.rows)
    yield f"{'':{width + 14}}{'stable rank, effective rank':<{19 * len(parts)}}".rstrip()
    head = f"{'matrix':{width}}  {'shape':>12}" + "".join(f"{part:>19}" for part in parts)
    yield head + ("  intruders" if intruders else "") + ("   rank" if ranks else "")
    for row in found.rows:
        line = f"{row['matrix']:{width}}  {'{} x {}'.format(*row['shape']):>12}"
        line += "".join(_pair(row[part]) for part in parts)
        if intruders:
            line += f"{row.get('intruders', '-'):>11}"
        yield line + (f"{ranks.ranks[row['matrix']]:>7}" if ranks else "")
    for step in found.steps:
        name = f"mean at step {step['step']}"
        yield f"{name:{width + 14}}" + "".join(_pair(step.get(part)) for part in parts)
    if ranks:
        yield ""
        yield from ranks_toml(ranks).splitlines()


def _pair(figures: dict[str, Any] | None) -> str:
    return f"{figures['stable_rank']:>9.1f}, {figures['effective_rank']:>8.1f}" if figures else f"{'-':>19}"
