"""The report of the fault suite: `pytest --fault-report OUT.json` runs the tests marked `fault` and judges each fault.

The mark's names travel in the reports of the tests, so that the process that hands tests out to others sees them.
"""

import ast
import datetime
import functools
import json
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults.table import FAULTS
from support import ROOT

PROPERTY = "faults"
"""Name under which a test's report has the faults that it injects."""


def faults_of(item: pytest.Item) -> list[str]:
    """The faults that a test is marked with; ValueError where the table has none of that name."""
    names = [name for mark in item.iter_markers("fault") for name in mark.args]
    if unknown := [name for name in names if name not in FAULTS]:
        raise ValueError(f"{item.nodeid} is marked with {unknown}, which tests/faults/table.py does not list")
    return list(dict.fromkeys(names))


def named(tree: ast.AST) -> Iterator[str]:
    """The faults of all marks within `tree`; "*" where a name is not written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fault":
            yield from (arg.value if isinstance(arg, ast.Constant) else "*" for arg in node.args)


@functools.cache
def marked_tests() -> dict[str, tuple[str, ...]]:
    """The faults of every marked test function, `file::name`, as the sources have them: nothing is imported."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(ROOT.joinpath("tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        of_all = [n for node in tree.body if _assigns(node, "pytestmark") for n in named(node)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names = of_all + [name for decorator in node.decorator_list for name in named(decorator)]
                if names:
                    found[f"{path.relative_to(ROOT)}::{node.name}"] = tuple(dict.fromkeys(names))
    return found


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


class FaultReport:
    """Collects what became of the marked tests, says it fault by fault at the end, and writes it down."""

    def __init__(self, out: Path):
        self.out = out
        self.began = time.monotonic()
        self.tests: dict[str, dict[str, Any]] = defaultdict(lambda: {"outcome": "passed", "seconds": 0.0, "faults": []})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self.tests[report.nodeid]
        # A test whose process died has no properties, but its source has the mark.
        written = marked_tests().get(report.nodeid.partition("[")[0], ())
        test["faults"] = dict(report.user_properties).get(PROPERTY) or [n for n in written if n in FAULTS]
        test["seconds"] += report.duration
        if report.outcome != "passed" and test["outcome"] != "failed":
            test["outcome"] = report.outcome

    def results(self) -> list[dict[str, Any]]:
        """One entry for each fault, in the table's order."""
        found = []
        for name, fault in FAULTS.items():
            tests = {test: result for test, result in sorted(self.tests.items()) if name in result["faults"]}
            outcomes = [result["outcome"] for result in tests.values()]
            outcome = "FAIL" if "failed" in outcomes else "pass" if "passed" in outcomes else "no test"
            found.append(
                {
                    "id": name,
                    "happens": fault.happens,
                    "promise": fault.promise,
                    "outcome": outcome,
                    "seconds": round(sum(result["seconds"] for result in tests.values()), 1),
                    "tests": {
                        test: {"outcome": result["outcome"], "seconds": round(result["seconds"], 2)}
                        for test, result in tests.items()
                    },
                }
            )
        return found

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the report; a fault that no test has passed fails the whole."""
        from pretrain.loop.summary import versions

        results = self.results()
        report = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "machine": {
                "system": platform.platform(),
                "cores": len(os.sched_getaffinity(0)),
                "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            },
            "versions": versions(),
            "seed": int(os.environ.get("SPARLOW_TEST_SEED", "0")),
            "seconds": round(time.monotonic() - self.began),
            "faults": results,
        }
        self.out.write_text(json.dumps(report, indent=1) + "\n")
        if session.exitstatus == pytest.ExitCode.OK and any(result["outcome"] != "pass" for result in results):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        results = self.results()
        terminalreporter.section("faults")
        for result in results:
            skipped = sum(test["outcome"] == "skipped" for test in result["tests"].values())
            count = f"{len(result['tests']) - skipped} tests" + (f" ({skipped} skipped)" if skipped else "")
            head = f"{result['id']:<5}{result['outcome']:<9}{count:<22}{result['seconds']:>5.0f} s"
            terminalreporter.line(f"{head}  {result['happens']}", red=result["outcome"] != "pass")
        passed = sum(result["outcome"] == "pass" for result in results)
        terminalreporter.line(
            f"{passed} of {len(results)} faults survived in {time.monotonic() - self.began:.0f} s; seed "
            f"{os.environ.get('SPARLOW_TEST_SEED', '0')}; written to {self.out}"
        )


def _commit() -> str | None:
    """The commit that is tested, with `-dirty` where files differ from it; None outside a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
