"""Sparlow's modules in processes, whatever lies in the folder that they are started in."""

import os
import subprocess
import sys

import pytest

from model.errors import RunFailed
from pretrain.bench.slices import Contestant
from pretrain.machine.own_module import ROOT, command, environment


def test_a_users_module_is_not_taken_for_ours(tmp_path):
    (tmp_path / "model.py").write_text("raise SystemExit(5)")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("raise SystemExit(5)")
    theirs = subprocess.run([sys.executable, "-m", "model.errors"], cwd=tmp_path, check=False)
    ours = subprocess.run(command("model.errors"), cwd=tmp_path, env=environment(), check=False)
    assert (theirs.returncode, ours.returncode) == (5, 0)


def test_a_contestant_of_a_benchmark_neither(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFailed, match="ours ended early with status 0"):
        Contestant("ours", "model.errors")


def test_a_checkout_need_not_be_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert environment()["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(tmp_path)]
    monkeypatch.delenv("PYTHONPATH")
    bare = (sys.executable, "-P", "-S", "-m", *command("model.errors")[3:])  # without what is installed
    assert subprocess.run(bare, cwd=tmp_path, env=environment(), check=False).returncode == 0
