"""What a run folder without checkpoints still shows of some that were there: reason not to begin anew in it."""

import contextlib
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError


def require_none_lost(run_dir: Path, locked_before: bool) -> None:
    """UserError where checkpoints were committed in `run_dir`, in which there is none now.

    A run that was killed before its first checkpoint leaves metrics too, and begins anew. `locked_before` says whether
    the folder of checkpoints was there, with its lock, before this process took it.
    """
    if found := list(_remains(run_dir, locked_before)):
        raise UserError(
            f"run.dir: {run_dir} has no checkpoint left, but {' and '.join(found)}, so it had some: put them back; to "
            "start anew choose another run.dir, or remove what is left in this one"
        )


def _remains(run_dir: Path, locked_before: bool) -> Iterator[str]:
    latest = run_dir / "checkpoints" / "latest"
    if os.path.lexists(latest):  # written when a checkpoint is whole
        yield "checkpoints/latest is there"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        summary = json.loads((run_dir / "summary.json").read_bytes())
        if summary.get("error") is None and summary["step"] > 0:  # written when the last checkpoint is
            yield f"summary.json is of step {int(summary['step'])}"
    step = _last_step(run_dir / "metrics.jsonl")
    # One save ends before the next begins, and one that fails for good ends a run with an error in its summary.
    if step and (not locked_before or (step > 2 * _every(run_dir) and not (run_dir / "summary.json").exists())):
        yield f"metrics.jsonl reaches step {step}"


def _last_step(metrics: Path) -> int:
    """The last step with figures; 0 where there is none."""
    last = 0
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in metrics.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                last = int(json.loads(line)["step"])
    return last


def _every(run_dir: Path) -> float:
    """How many steps that run went from one checkpoint to the next; infinity where it has not written it down."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return float(tomllib.loads((run_dir / "resolved.toml").read_text(encoding="utf-8"))["checkpoint"]["every"])
    return float("inf")
