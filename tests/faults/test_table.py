"""The table of faults, the marks and the points: no name that strikes nothing."""

import ast
import json
import os
import re
from types import SimpleNamespace

import pytest
from faults.table import FAULTS, PROTECTIONS
from faults_page import PAGE, marked_tests, page
from faults_report import PROPERTY, FaultReport
from support import ROOT

from pretrain.machine.fault import POINTS, fault_point


def test_every_mark_names_a_fault():
    assert {name for names in marked_tests().values() for name in names} <= FAULTS.keys() | {"*"}


def ended(outcome: str, *faults: str, name: str = "tests/faults/test_x.py::test_x") -> SimpleNamespace:
    """A part of a test's report; without its faults where the process has died that ran it."""
    properties = [(PROPERTY, list(faults))] if faults else []
    return SimpleNamespace(nodeid=name, outcome=outcome, duration=1.0, user_properties=properties)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["passed"] * 3, "pass"),
        (["passed", "failed", "passed"], "FAIL"),
        (["skipped", "passed"], "no test"),
        ([], "no test"),
    ],
)
def test_what_became_of_a_fault(tmp_path, outcomes, expected):
    report = FaultReport(tmp_path / "out.json")
    for outcome in outcomes:
        report.pytest_runtest_logreport(ended(outcome, "F3", "F4"))
    results = {result["id"]: result for result in report.results()}
    assert list(results) == list(FAULTS)
    assert results["F3"]["outcome"] == results["F4"]["outcome"] == expected
    assert results["F3"]["seconds"] == len(outcomes)
    assert results["F5"]["outcome"] == "no test"
    session = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    report.pytest_sessionfinish(session)
    assert session.exitstatus == pytest.ExitCode.TESTS_FAILED
    assert json.loads((tmp_path / "out.json").read_text())["faults"][0]["id"] == "F1"


def test_a_test_whose_process_died_counts_for_its_faults(tmp_path):
    report = FaultReport(tmp_path / "out.json")
    name = next(test for test, faults in marked_tests().items() if "F3" in faults)
    report.pytest_runtest_logreport(ended("failed", name=f"{name}[shard:2]"))
    assert {result["id"]: result["outcome"] for result in report.results()}["F3"] == "FAIL"


def test_every_fault_has_a_test():
    assert not FAULTS.keys() - {name for names in marked_tests().values() for name in names}


def test_every_protection_is_in_the_sources():
    for name, protection in PROTECTIONS.items():
        file, _, line = protection.partition(": ")
        assert name in FAULTS
        assert line in ROOT.joinpath(file).read_text(), f"{name}: {file} no longer has {line}"


def test_the_page_is_current():
    assert PAGE.read_text() == page(), "run python tests/faults_page.py"


def test_every_point_is_visited_and_every_visited_one_is_known():
    visits = set()
    for path in sorted(ROOT.joinpath("pretrain").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("fault_point", "fault_flag"):
                name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                assert name or path.name == "fault.py", f"{path}: a point whose name is not written out"
                visits |= {name} - {None}
    assert visits == POINTS.keys()


def test_a_misspelt_point_is_an_error(monkeypatch):
    monkeypatch.setenv("SPARLOW_FAULT", "shart:2")
    with pytest.raises(ValueError, match=r"names no point: shart; there are .*mid_file, shard"):
        fault_point("shard")


def test_every_point_in_the_tests_exists():
    """As `point` or `point:n`, wherever SPARLOW_FAULT or fault= is given; lists of points meet tests/processes.py."""
    pattern = re.compile(r"""(?:\bfault=|SPARLOW_FAULT["',=: ]+)["']([a-z_]+)(?:[:/]\d+)*["']""")
    found = {
        (path.name, point)
        for path in ROOT.joinpath("tests").rglob("*.py")
        for point in pattern.findall(path.read_text())
        if path.name != os.path.basename(__file__)
    }
    assert len(found) >= 3
    assert {point for _, point in found} <= POINTS.keys()
