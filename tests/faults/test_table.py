"""The table of faults, the marks and the points: no name that strikes nothing."""

import ast
import os
import re

import pytest
from faults.table import FAULTS
from faults_report import marked_tests
from support import ROOT

from pretrain.machine.fault import POINTS, fault_point


def test_every_mark_names_a_fault():
    assert {name for names in marked_tests().values() for name in names} <= FAULTS.keys() | {"*"}


def test_every_point_is_visited_and_every_visited_one_is_known():
    visits = set()
    for path in sorted(ROOT.joinpath("pretrain").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())) if path.name != "fault.py" else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("fault_point", "fault_flag"):
                assert isinstance(node.args[0], ast.Constant), f"{path}: a point whose name is not written out"
                visits.add(node.args[0].value)
    assert visits == POINTS.keys()


def test_a_misspelt_point_is_an_error(monkeypatch):
    monkeypatch.setenv("SPARLOW_FAULT", "shart:2")
    with pytest.raises(ValueError, match="names no point: shart; there are mid_file, shard"):
        fault_point("shard")


def test_every_point_in_the_tests_exists():
    """As `point` or `point:n`, wherever SPARLOW_FAULT or fault= is given; lists of points meet tests/processes.py."""
    pattern = re.compile(r"""(?:\bfault=|SPARLOW_FAULT["',=: ]+)["']([a-z_]+)(?::\d+)?["']""")
    found = {
        (path.name, point)
        for path in ROOT.joinpath("tests").rglob("*.py")
        for point in pattern.findall(path.read_text())
        if path.name != os.path.basename(__file__)
    }
    assert len(found) >= 3
    assert {point for _, point in found} <= POINTS.keys()
