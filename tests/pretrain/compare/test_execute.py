"""Where runs compute, and why one has ended."""

import os
import sys

import pytest
from suites import write_suite

from pretrain.compare import execute
from pretrain.compare.execute import Pool, places
from pretrain.compare.matrix import make_methods
from pretrain.compare.read import read_suite


def test_runs_share_the_cores_or_have_a_gpu_each(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert places(2, ()) == [{}, {}]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert places(1, ()) == [{}]
    assert places(3, ()) == [{"OMP_NUM_THREADS": "5"}] * 3
    assert places(99, ())[0] == {"OMP_NUM_THREADS": "1"}
    assert places(1, ("0", "3")) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}]


def test_runs_are_of_these_sources(tmp_path, monkeypatch):
    """Not of what lies in the present folder, nor of another checkout that PYTHONPATH names."""
    other = tmp_path / "other" / "pretrain"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit(5)")
    (tmp_path / "model.py").write_text("raise SystemExit(6)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    run = make_methods(read_suite(write_suite(tmp_path)))["dense + adamw"].run(1e-3, 0, 100)
    with Pool([{}], lambda _: None) as pool:
        (ended,) = pool.run([run])
    assert ended.status == 2
    assert ended.reason.startswith("nowhere: no prepared corpus there")


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("print('sparlow train: no room'); print('a line'); sys.exit(1)", 1, "no room"),
        ("print('Traceback'); print('ValueError: 3'); sys.exit(1)", 1, "ValueError: 3"),
        ("sys.exit(2)", 2, "exit status 2"),
        ("os.kill(os.getpid(), 9)", -9, "killed (signal 9); is there too little memory?"),
        ("sys.exit(143)", 143, "stopped by a signal; the same command goes on with it"),
        ("print(os.environ['PLACE']); sys.exit(3)", 3, "here"),
    ],
)
def test_why_a_run_has_ended(tmp_path, monkeypatch, code, status, reason):
    monkeypatch.setattr(execute, "COMMAND", (sys.executable, "-ISc", f"import os, sys; {code}"))
    run = make_methods(read_suite(write_suite(tmp_path)))["dense + adamw"].run(1e-3, 0, 100)
    run.folder.mkdir(parents=True)
    (run.folder / execute.LOG).write_text("sparlow train: what an earlier process has said\n")
    begun = []
    with Pool([{"PLACE": "here"}], begun.append) as pool:
        (ended,) = pool.run([run])
    assert begun == [run]
    assert (ended.status, ended.reason) == (status, reason)
    assert (run.folder / execute.CONFIG).exists()
