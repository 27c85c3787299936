"""Updates that are not finite are skipped on every stage, counted, and never touch the weights."""

import json
from pathlib import Path

import pytest
from support import logged, tensor_hashes, train_here

from model.errors import RunFailed
from pretrain.machine import fault


@pytest.fixture
def poison(monkeypatch):
    """poison(visits): the gradients of these micro-steps are NaN."""

    def arm(*visits: int) -> None:
        count = iter(range(1, 1000))
        monkeypatch.setattr("pretrain.engine.base.fault_flag", lambda point: next(count) in visits)

    return arm


def state(run: Path, step: int) -> dict:
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.fault("F19")
def test_one_bad_micro_step_skips_one_update(tiny, tmp_path, poison, stage, dtype):
    options = [
        f"--parallel.zero_stage={stage}",
        f"--train.dtype={dtype}",
        "--checkpoint.every=1",
        "--checkpoint.keep=9",
    ]
    poison(6)  # four micro-steps per step: the second one of step 2
    train_here(tiny, *options, "--train.max_steps=4")
    run = tmp_path / "run"
    before, after, later = (tensor_hashes(run, step) for step in (1, 2, 4))
    assert before == after
    assert later != after
    assert state(run, 2)["skipped_steps"] == state(run, 4)["skipped_steps"] == 1
    assert (state(run, 2)["consecutive_skips"], state(run, 4)["consecutive_skips"]) == (1, 0)
    assert state(run, 4)["cursor"] == 4 * 8


@pytest.mark.fault("F19")
def test_resume_after_a_skip_is_exact(tiny, tmp_path, poison):
    poison(6)
    train_here(tiny, f"--run.dir={tmp_path / 'straight'}", "--train.max_steps=6")
    poison(6)
    train_here(tiny, "--train.max_steps=3")
    train_here(tiny, "--train.max_steps=6")
    assert tensor_hashes(tmp_path / "run", 6) == tensor_hashes(tmp_path / "straight", 6)
    assert logged(tmp_path / "run") == logged(tmp_path / "straight")


@pytest.mark.fault("F20")
def test_too_many_in_a_row_end_the_run_and_the_count_survives_a_resume(tiny, tmp_path, poison):
    poison(*range(5, 13))  # steps 2 and 3
    train_here(tiny, "--train.max_steps=3", "--guard.max_consecutive_skips=3")
    poison(1)  # step 4
    with pytest.raises(RunFailed, match="3 updates in a row were skipped"):
        train_here(tiny, "--train.max_steps=6", "--guard.max_consecutive_skips=3")


def test_the_fault_hook_strikes_once(monkeypatch):
    monkeypatch.setenv("SPARLOW_FAULT", "shard:2")
    fault._visits.clear()
    assert [fault.fault_flag(point) for point in ("shard", "prune", "shard", "shard")] == [False, False, True, False]


def test_several_faults_each_at_its_process(monkeypatch):
    monkeypatch.setenv("SPARLOW_FAULT", "shard:2,prune/1,before_rename/0")
    fault._visits.clear()
    struck = [fault.fault_flag(point) for point in ("shard", "prune", "shard", "before_rename", "before_latest")]
    assert struck == [False, False, True, True, False]
