"""`python -m pretrain.bench.gpu_check RESULTS [--only NAME] [--minutes N]`: what launch/gpu_check.sh runs on a GPU.

Every part runs in processes of its own within a time limit. A part that fails is recorded and the rest still runs. The
record is rewritten after every part, so whatever ends the check leaves what was found.
"""

import argparse
import datetime
import json
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from pretrain.bench import gpu_7b, gpu_kernels, gpu_training
from pretrain.bench.part import Check, Failed, Part, Skipped
from pretrain.bench.timing import environment
from pretrain.machine.files import replace_text

PARTS = [
    Part("triton tests", gpu_kernels.triton_tests),
    Part("equal bits", gpu_kernels.repeats),
    Part("training", gpu_training.parity),
    Part("resume", gpu_training.resume),
    Part("background saves", gpu_training.background),
    Part("compute-sanitizer", gpu_kernels.sanitizer),
    *gpu_7b.parts(),
    Part("timings", gpu_kernels.timings, proof=False),
    Part("optimizer timings", gpu_kernels.optimizer_timings, proof=False),
    *gpu_7b.offload_parts(),
    *gpu_7b.products_parts(),
]
"""Proofs come first, then what takes whatever time is left."""

MINUTES, MINUTES_ALONE = 440 / 60, 60.0
"""Time of a whole check, and of parts that are asked for by name."""


def run_parts(check: Check, parts: list[Part], results: Path, *, asked_for: bool = False) -> int:
    """Run all of `parts` and keep the record in `results`; 1 when one failed, else 0.

    `asked_for` by name, it is a failure too if every part was skipped.
    """
    record: dict[str, Any] = {"command": "bash launch/gpu_check.sh", **environment(torch.device(check.device))}
    record |= {"seconds": 0.0, "failures": {}, "skipped": {}, "parts": {}}
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M%S")
    path = results / f"{now}_{re.sub(r'[^A-Za-z0-9]+', '-', record['hardware']['name'])}.json"
    started = time.monotonic()
    for part in parts:
        name = part.name
        print(f"== {name}", flush=True)
        begun = time.monotonic()
        outcome, why, figures = _attempt(part, check)
        seconds = round(time.monotonic() - begun, 1)
        record["parts"][name] = {"outcome": outcome, "seconds": seconds, **figures}
        if why:
            record["failures" if outcome == "failed" else "skipped"][name] = why
        record["seconds"] = round(time.monotonic() - started, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(record, indent=1) + "\n")
        print(f"== {name}: {outcome} after {seconds} s" + (f": {why}" if why else ""), flush=True)
    print(f"written to {path}")
    return 1 if record["failures"] or (asked_for and len(record["skipped"]) == len(parts)) else 0


def _attempt(part: Part, check: Check) -> tuple[str, str, dict[str, Any]]:
    """Outcome (passed, failed or skipped), why, and figures."""
    if check.seconds_left <= 0:
        return "failed" if part.proof else "skipped", "no time was left for it", {}
    try:
        return "passed", "", part.run(check)
    except Skipped as reason:
        return "skipped", str(reason), reason.figures
    except Failed as error:
        return "failed", str(error), error.figures
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}", {"output": traceback.format_exc()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="launch/gpu_check.sh", allow_abbrev=False)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of the record")
    parser.add_argument("--only", metavar="NAME", help="only the parts whose names begin so")
    parser.add_argument("--minutes", type=float, metavar="N", help=f"at most ({MINUTES:.1f}; {MINUTES_ALONE:g} --only)")
    args = parser.parse_args(arguments)
    parts = [part for part in PARTS if part.name.startswith(args.only or "")]
    if not parts:
        parser.error(f"--only {args.only!r}: no such part; there are {', '.join(part.name for part in PARTS)}")
    minutes = args.minutes or (MINUTES if args.only is None else MINUTES_ALONE)
    with tempfile.TemporaryDirectory() as work:
        check = Check(Path(work), deadline=time.monotonic() + 60 * minutes)
        return run_parts(check, parts, args.results, asked_for=args.only is not None)


if __name__ == "__main__":
    sys.exit(main())
