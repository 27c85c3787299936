"""Kills, signals, full disks: a run goes on from its last complete checkpoint and ends as if nothing had happened."""

import os
import re
import signal
import time

import pytest
from support import logged, run_command, start_command, tensor_hashes, train_here, write_tiny

from model.errors import RunFailed


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """Hashes and losses of a run of 24 steps that nothing happened to."""
    run = tmp_path_factory.mktemp("undisturbed")
    train_here(write_tiny(run, corpus), "--train.max_steps=24")
    return tensor_hashes(run / "run", 24), logged(run / "run")


# The second save (step 16) is struck; "shard" and "mid_file" count single files.
POINTS = ["shard:2", "mid_file:6", "before_manifest:2", "before_rename:2", "before_latest:2", "prune:1"]


@pytest.mark.parametrize("point", POINTS)
def test_kill_in_the_middle_of_a_save(tiny, tmp_path, undisturbed, point):
    options = ["train", str(tiny), "--train.max_steps=24", "--checkpoint.every=8", "--checkpoint.keep=1"]
    status, output = run_command(*options, fault=point)
    assert status == -signal.SIGKILL, output
    folder = tmp_path / "run" / "checkpoints"
    train_here(tiny, *options[2:])
    assert (tensor_hashes(tmp_path / "run", 24), logged(tmp_path / "run")) == undisturbed
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "lock", "step-00000024"]


@pytest.mark.parametrize("point", ["shard:2", "before_rename:2"])
def test_what_a_kill_leaves_is_the_save_before(tiny, tmp_path, point, capsys):
    status, output = run_command("train", str(tiny), "--checkpoint.every=8", fault=point)
    assert status == -signal.SIGKILL, output
    train_here(tiny, "--train.max_steps=9")
    assert f"resuming {tmp_path}/run at step 8" in capsys.readouterr().out


def test_sigterm_saves_and_the_rerun_ends_the_same(tiny, tmp_path, undisturbed):
    process = start_command("train", str(tiny), "--train.max_steps=24", "--train.micro_batch_size=1")
    wait_for_step(process, tmp_path / "run" / "metrics.jsonl")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert (stopped := re.search(r"stopped at step (\d+) with a checkpoint", output)), output
    assert int(stopped[1]) < 24
    train_here(tiny, "--train.max_steps=24", "--train.micro_batch_size=1")
    assert len(logged(tmp_path / "run")) == 24


def wait_for_step(process, metrics) -> None:
    """Until the first step has been logged."""
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") >= 1:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("no step in 30 s")


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tiny, tmp_path, monkeypatch, capsys):
    """Writes fail while the disk is full; the run goes on, the old checkpoint stays, and the next save succeeds."""
    from pretrain.checkpoint import save

    write, calls = save.write_synced, []

    def disk_full_at_second_save(path, data):
        calls.append(path.parent.name)
        if path.parent.name.startswith("step-00000016") and path.name == "config.toml":
            path.write_bytes(data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(save, "write_synced", disk_full_at_second_save)
    train_here(tiny, "--train.max_steps=20", "--checkpoint.every=8")
    assert "CHECKPOINT NOT WRITTEN" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-00000008", "step-00000020"]


def test_a_run_whose_last_save_failed_says_so(tiny, monkeypatch):
    from pretrain.checkpoint import save

    def disk_full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "write_synced", disk_full)
    with pytest.raises(RunFailed, match="last checkpoint could not be written"):
        train_here(tiny, "--train.max_steps=2")


@pytest.mark.slow
def test_random_kills(tiny, tmp_path, undisturbed):
    """Killed at random moments until it gets through; the seed of the moments is the process's and is printed."""
    import random

    seed = int(os.environ.get("SPARLOW_TEST_SEED", "0"))
    print(f"SPARLOW_TEST_SEED={seed}")
    rng = random.Random(seed)
    for _ in range(15):
        process = start_command(
            "train", str(tiny), "--train.max_steps=24", "--checkpoint.every=2", "--checkpoint.keep=2"
        )
        try:
            process.communicate(timeout=rng.uniform(2.5, 6.0))
        except Exception:
            process.kill()
            process.communicate()
    train_here(tiny, "--train.max_steps=24", "--checkpoint.every=2", "--checkpoint.keep=2")
    assert (tensor_hashes(tmp_path / "run", 24), logged(tmp_path / "run")) == undisturbed
