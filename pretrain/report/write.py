"""`sparlow report`: what several runs came to, from their folders to a folder with a picture, a table and a page."""

import json
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import Any

from model.errors import UserError
from pretrain.report.curve import Curve, compare, default_window, first_crossing, smooth
from pretrain.report.logged import LoggedRun, read_runs
from pretrain.report.page import page
from pretrain.report.picture import draw
from pretrain.report.words import COLUMNS, speedup_lines, unlike_words


@dataclass(frozen=True)
class Report:
    """Runs with their `smoothed` training losses over `window` tokens, and the rows of `table.json`."""

    runs: list[LoggedRun]
    smoothed: list[Curve]
    window: int
    table: list[dict[str, Any]]
    notes: list[str]
    """One sentence for each thing that is left out."""

    def lines(self) -> list[str]:
        """What is printed."""
        return [*self.notes, *speedup_lines(self.table), f"losses smoothed over the last {self.window:,} tokens"]

    def json(self) -> str:
        return json.dumps(self.table, indent=1) + "\n"

    def write(self, out: Path) -> list[Path]:
        """Write `loss.png`, `table.json` and `index.html` to `out` and return them; UserError where that fails."""
        files = [out / name for name in ("loss.png", "table.json", "index.html")]
        try:
            out.mkdir(parents=True, exist_ok=True)
            files[1].write_text(self.json(), encoding="utf-8")
            text = page(self.runs, self.smoothed, self.table, self.notes, self.window)
            # A folder may have a name that is no text.
            files[2].write_text(text, encoding="utf-8", errors="replace")
            draw(self.runs, self.smoothed, self.window, [row["speedup"] for row in self.table], files[0])
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
        return files


def write_report(paths: list[Path], out: Path, baseline: str | None = None, window: int | None = None) -> list[Path]:
    """Write a report of the runs at `paths` to `out` and return its files, as `make_report` and `Report.write` do."""
    return make_report(paths, baseline, window).write(out)


def make_report(paths: list[Path], baseline: str | None = None, window: int | None = None) -> Report:
    """Compare runs with `baseline`, a path or name of one of them, smoothing over `window` tokens.

    Defaults: the first run that has not grown; `curve.default_window`. UserError names what is missing or wrong.
    """
    runs = read_runs(paths)
    if window is None:
        window = default_window([run.curve for run in runs])
    else:
        _check_window(runs, window)
    against = _baseline(runs, baseline)
    smoothed = [smooth(run.curve, window) for run in runs]
    table, notes = [], []
    if against is None and len(runs) > 1:
        notes.append("no speedup: no run is known to have trained without growth; name one with --baseline")
    for index, (run, curve) in enumerate(zip(runs, smoothed, strict=True)):
        found, reason = None, None
        if against is not None and index != against:
            if run.data.unlike(runs[against].data):
                reason = unlike_words(run, runs[against])
            else:
                found, reason = compare(smoothed[against], curve, runs[against].name, window)
        if found is not None:
            crossing = first_crossing(curve.costs["flops"], curve.losses, found["loss"])
            assert crossing is not None
            ends = [spent for spent, _ in run.growth("flops")]
            found["stage"] = 1 + sum(end < crossing for end in ends)
            if found["stage"] <= len(ends):
                notes.append(f"{run.name}: it reaches that loss before it has grown to its last model")
        if against is not None and index != against and not run.data.comparable(runs[against].data):
            known = run.name if run.data.fingerprint else runs[against].name
            notes.append(f"{run.name}: only {known} tells what it was trained on; compared as if it were the same data")
        if run.unfinished:
            notes.append(
                f"{run.name}: {run.unfinished}; drawn up to step "
                f"{run.records[-1]['step']}, with the figures logged last"
            )
        if not run.has_flops:
            notes.append(f"{run.name}: its logged steps have no train/flops, so FLOPs and speedup leave it out")
        elif reason:
            notes.append(f"{run.name}: no speedup, because {reason}")
        figures = {key: run.summary.get(key) for key in COLUMNS}
        table.append({"run": run.name, **figures, "window_tokens": window, "speedup": found, "speedup_reason": reason})
    return Report(runs, smoothed, window, table, notes)


def _check_window(runs: list[LoggedRun], window: int) -> None:
    if window <= 0:
        raise UserError(f"--window {window}: must be at least 1 token")
    for run in runs:
        logged = run.curve.tokens[-1] - run.curve.tokens[0]
        if window > logged:
            raise UserError(f"--window {window}: longer than {run.name}, which has logged {logged} tokens; lower it")


def _baseline(runs: list[LoggedRun], name: str | None) -> int | None:
    """Which of `runs` the others are compared with."""
    for index, run in enumerate(runs):
        if name is None and run.grown is False:
            return index
        if name is not None and (name == run.name or realpath(name) == realpath(run.path)):
            return index
    if name is not None:
        raise UserError(f"--baseline {name}: is not one of the runs given: {', '.join(run.name for run in runs)}")
    return None
