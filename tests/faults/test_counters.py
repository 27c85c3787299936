"""Clocks that jump, and counters that are as large as the longest run makes them."""

import ast
import json
import shutil
import time

import pytest
from growth_runs import checkpoint
from support import ROOT, edit_checkpoint, logged, train_here

FAR = 10**9


@pytest.mark.fault("F31")
def test_a_clock_that_jumps_back_makes_no_speed_negative(tiny, tmp_path, monkeypatch):
    """Every look at it is an hour earlier than the last."""
    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", earlier)
    options = ["--train.max_steps=3", "--metrics.tensorboard=true", "--checkpoint.every=1", "--eval.every=2"]
    assert train_here(tiny, *options) == 0
    for key in ("perf/tokens_per_s", "perf/step_ms_p50", "perf/step_ms_p99"):
        assert min(map(float, logged(tmp_path / "run", key).values())) > 0
    assert min(map(float, logged(tmp_path / "run", "perf/data_wait").values())) >= 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert all(value >= 0 for key, value in summary.items() if key.endswith("seconds") and value is not None)


@pytest.mark.fault("F31")
def test_durations_are_never_differences_of_the_time_of_day():
    found = {
        str(path.relative_to(ROOT)): ast.unparse(node)
        for package in ("kernels", "model", "pretrain")
        for path in ROOT.joinpath(package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.time", "time.time_ns", "datetime.now")
    }
    assert not found


@pytest.mark.fault("F31")
def test_a_thousand_million_steps(tiny, tmp_path, capsys):
    """Step, tokens and place in the data as they are then; the names of checkpoints have ten digits and still sort."""
    options = [f"--schedule.total_steps={FAR + 4}", "--checkpoint.every=1", "--checkpoint.keep=2", "--eval.every=2"]
    assert train_here(tiny, *options, "--train.max_steps=1") == 0
    run = tmp_path / "run"
    state = json.loads((checkpoint(run, 1) / "state.json").read_text())
    state |= {"step": FAR - 2, "cursor": 8 * (FAR - 2), "tokens_seen": 128 * (FAR - 2), "updates": FAR - 2}
    state |= dict.fromkeys(("flops", "flops_dense_equivalent"), 1e24)
    edit_checkpoint(checkpoint(run, 1), files={"state.json": json.dumps(state).encode()}, step=FAR - 2)
    shutil.move(checkpoint(run, 1), checkpoint(run, FAR - 2))
    (run / "metrics.jsonl").unlink()
    assert train_here(tiny, *options, f"--train.max_steps={FAR + 2}") == 0
    assert list(logged(run)) == [FAR - 1, FAR, FAR + 1, FAR + 2]
    assert min(map(float, logged(run, "perf/tokens_per_s").values())) > 0
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == [f"step-{FAR + n}" for n in (1, 2)]
    assert f"resuming {run} at step {FAR - 2}" in capsys.readouterr().out
