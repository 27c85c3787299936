"""Parts of the check on a GPU that need no trainer: tests that launch, races, equal bits, timings."""

import importlib.util
import json
import os
import re
import shutil
import sys
from typing import Any

from pretrain.bench.part import ROOT, TAIL, Check, Failed, Skipped

TESTS = "tests/kernels/triton"
REPEATS = "tests/kernel_repeats.py"
SANITIZED = ["-k", "(136 or shape0) and bfloat16", f"{TESTS}/test_decompress.py", f"{TESTS}/test_tile_gather.py"]
"""A matrix of several tiles with ragged edges."""

KERNELS_SHARE = 2 / 3
"""Share of the remaining time that the kernels' timings get; the optimizers have the rest."""

USAGE_ERROR = 2
"""argparse's status for an unknown command."""


def triton_tests(check: Check) -> dict[str, Any]:
    """The tests of the kernels, launched for real."""
    _require_pytest()
    options = ["-p", "no:cacheprovider", "-rfE", "--tb=short", "-o", "faulthandler_timeout=60"]
    if importlib.util.find_spec("xdist"):  # what takes time is compiling
        options += ["-n", str(min(8, os.cpu_count() or 1))]
    done = check.python("-m", "pytest", *options, TESTS, limit=150)
    lines = done.stdout.splitlines()
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped|deselected)", lines[-1] if lines else "")
    figures: dict[str, Any] = {outcome: int(count) for count, outcome in counts}
    if done.status != 0:
        figures["failures"] = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    done.require(f"pytest {TESTS}", **figures)
    return figures


def sanitizer(check: Check) -> dict[str, Any]:
    """A few of these tests under compute-sanitizer. Its race check sees shared memory only."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        raise Skipped("compute-sanitizer is not installed")
    _require_pytest()
    figures: dict[str, Any] = {}
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", "-x", *SANITIZED]
    for name, options in {"memcheck": ["--report-api-errors", "no"], "racecheck": []}.items():
        common = ["--tool", name, "--error-exitcode", "99", "--target-processes", "application-only"]
        # Without PyTorch's cache every tensor is an allocation of its own, so leaving it is seen.
        done = check.run(
            *(tool, *common, *options, sys.executable, *pytest), limit=60, PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
        if done.status is None:
            raise Skipped(f"compute-sanitizer --tool {name} did not finish in time", **figures)
        summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
        figures[name] = summary[-1].strip("= ") if summary else "no summary"
        done.require(f"compute-sanitizer --tool {name}", **figures)
    return figures


def repeats(check: Check) -> dict[str, Any]:
    """Find that equal inputs give equal bits, many times over."""
    size = ["--tiny"] if check.small else []
    arguments = ["--device", check.device, "--repeats", str(check.repeats), *size]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    output = check.python(REPEATS, *arguments, limit=120, PYTHONPATH=path).require(REPEATS)
    different = json.loads(output)
    figures = {"repeats": check.repeats, "different": different}
    if wrong := [name for name, count in different.items() if count]:
        raise Failed(f"equal inputs gave different bits: {', '.join(wrong)}", **figures)
    return figures


def timings(check: Check) -> dict[str, Any]:
    """`sparlow bench kernels`, one process per operation, so that one that fails leaves the others.

    All of them share KERNELS_SHARE of the time that is left; those that it does not suffice for are named.
    """
    from pretrain.bench.kernels.run import CASES

    rows: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    untimed: list[str] = []
    reserved = (1 - KERNELS_SHARE) * check.seconds_left
    for op in CASES:
        limit = check.seconds_left - reserved
        options = ["--device", check.device, "--only", op, "--turns", str(check.turns), "--json"]
        done = check.python("-m", "pretrain", "bench", "kernels", *options, limit=limit) if limit > 0 else None
        if done is None or done.status is None:
            untimed.append(op)
        elif done.status:
            failures[op] = f"status {done.status}: {(done.stdout + done.stderr)[-TAIL:]}"
        else:
            rows += json.loads(done.stdout)
    if failures:
        why = f"bench kernels failed for {', '.join(failures)}"
        raise Failed(why, rows=rows, failures=failures, untimed=untimed)
    if untimed:
        raise Skipped(f"the time did not suffice for {', '.join(untimed)}", rows=rows, untimed=untimed)
    return {"rows": rows}


def optimizer_timings(check: Check) -> dict[str, Any]:
    """`sparlow bench optimizers`, where there is such a command."""
    command = ["-m", "pretrain", "bench", "optimizers"]
    if check.python(*command, "--help", limit=30).status == USAGE_ERROR:
        raise Skipped("this version has no bench optimizers")
    options = ["--device", check.device, "--turns", str(check.turns), "--json"]
    done = check.python(*command, *options, limit=check.seconds_left)
    if done.status is None:
        raise Skipped("the time did not suffice", output=done.stderr[-TAIL:])
    return {"rows": json.loads(done.require("bench optimizers"))}


def _require_pytest() -> None:
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
