"""Kills, signals, full disks: a run goes on from its last complete checkpoint and ends as if nothing had happened."""

import json
import os
import re
import resource
import signal

import pytest
from processes import run_command, run_world, start_command, start_world, wait_for_step
from support import logged, tensor_hashes, train_here, write_tiny

from model.errors import RunFailed
from pretrain.loop.metrics import Metrics


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """Hashes and losses of a run of 24 steps that nothing happened to."""
    run = tmp_path_factory.mktemp("undisturbed")
    train_here(write_tiny(run, corpus), "--train.max_steps=24")
    return tensor_hashes(run / "run", 24), logged(run / "run")


# The second save (step 16) is struck; "shard" and "mid_file" count single files.
POINTS = ["shard:2", "mid_file:6", "before_manifest:2", "before_rename:2", "before_latest:2", "prune:1"]


@pytest.mark.fault("F3")
@pytest.mark.parametrize("point", POINTS)
def test_kill_in_the_middle_of_a_save(tiny, tmp_path, undisturbed, point):
    options = ["train", str(tiny), "--train.max_steps=24", "--checkpoint.every=8", "--checkpoint.keep=1"]
    status, output = run_command(*options, fault=point)
    assert status == -signal.SIGKILL, output
    folder = tmp_path / "run" / "checkpoints"
    train_here(tiny, *options[2:])
    assert (tensor_hashes(tmp_path / "run", 24), logged(tmp_path / "run")) == undisturbed
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "lock", "step-00000024"]


@pytest.mark.fault("F3")
@pytest.mark.parametrize("point", ["shard:2", "before_rename:2"])
def test_what_a_kill_leaves_is_the_save_before(tiny, tmp_path, point, capsys):
    status, output = run_command("train", str(tiny), "--checkpoint.every=8", fault=point)
    assert status == -signal.SIGKILL, output
    train_here(tiny, "--train.max_steps=9")
    assert f"resuming {tmp_path}/run at step 8" in capsys.readouterr().out


@pytest.mark.fault("F14")
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


@pytest.mark.fault("F14")
@pytest.mark.parametrize("max_steps", [24, 12])
def test_sigterm_during_an_evaluation(tiny, tmp_path, monkeypatch, max_steps):
    """It is made up for by the rerun, at the end of a run or in its middle, and leaves the same metrics."""
    from pretrain.loop import train

    options = [f"--train.max_steps={max_steps}", "--eval.every=12", "--schedule.total_steps=24"]
    train_here(tiny, *options, f"--run.dir={tmp_path}/straight")
    evaluate = train.evaluate

    def struck(*arguments):
        monkeypatch.setattr(train, "evaluate", evaluate)
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(train, "evaluate", struck)
    assert train_here(tiny, *options) == 143
    assert "val/loss" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert train_here(tiny, *options) == 0
    assert logged(tmp_path / "run", "val/loss") == logged(tmp_path / "straight", "val/loss")
    assert logged(tmp_path / "run") == logged(tmp_path / "straight")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["step"], summary["val_loss"]) == (max_steps, pytest.approx(summary["val_loss"]))


@pytest.mark.fault("F4")
def test_a_kill_before_the_summary_is_made_up_for(tiny, tmp_path):
    status, output = run_command("train", str(tiny), "--train.max_steps=2", fault="after_save")
    assert status == -signal.SIGKILL, output
    assert not (tmp_path / "run" / "summary.json").exists()
    assert train_here(tiny, "--train.max_steps=2") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["val_loss"] > 0


@pytest.mark.slow
@pytest.mark.fault("F14")
@pytest.mark.fault("F15")
def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(tiny, tmp_path, undisturbed):
    ranks = start_world(2, "-m", "pretrain", "train", str(tiny), "--train.max_steps=24")
    wait_for_step(ranks[0], tmp_path / "run" / "metrics.jsonl")
    ranks[1].send_signal(signal.SIGTERM)
    outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [143, 143], outputs
    assert re.search(r"stopped at step (\d+) with a checkpoint", outputs[0]), outputs
    train_here(tiny, "--train.max_steps=24")
    losses = logged(tmp_path / "run")
    assert {step: float(loss) for step, loss in losses.items()} == pytest.approx(
        {step: float(loss) for step, loss in undisturbed[1].items()}, abs=1e-5
    )


@pytest.mark.fault("F16")
def test_a_second_signal_kills_but_an_echo_of_the_first_does_not(monkeypatch):
    from pretrain.machine import stop

    ended: list[int] = []
    clock = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stop, "end", lambda sentence, status: ended.append(status))
    monkeypatch.setattr(stop.signal, "signal", lambda *_: None)
    stop.listen()
    for seconds, expected in ((0.0, []), (1.0, []), (3.0, [stop.KILLED])):
        clock[0] = 100.0 + seconds
        stop.told(signal.SIGTERM)
        assert stop.asked()
        assert ended == expected
    stop.listen()


@pytest.mark.slow
@pytest.mark.fault("F11")
def test_a_full_disk_on_one_of_two_processes(tiny, tmp_path):
    """Only rank 0 writes a small checkpoint; rank 1 must learn of the failure and go on with it."""
    options = ["train", str(tiny), "--train.max_steps=6", "--checkpoint.every=2"]
    output = run_world(2, "-m", "pretrain", *options, SPARLOW_FAULT="disk_full:6")  # five files a checkpoint
    assert "CHECKPOINT NOT WRITTEN (" in output
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-00000002", "step-00000006"]


@pytest.mark.fault("F11")
def test_a_disk_that_is_really_full(tiny, tmp_path, capsys):
    """No file may grow beyond 40 kB: checkpoints and, at the end, metrics fail with the kernel's own error."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        with pytest.raises(RunFailed, match="last checkpoint could not be written"):
            train_here(tiny, "--train.max_steps=6", "--checkpoint.every=2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert capsys.readouterr().out.count("CHECKPOINT NOT WRITTEN") == 3
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert train_here(tiny, "--train.max_steps=6") == 0


@pytest.mark.fault("F44")
def test_metrics_that_cannot_be_written_do_not_end_the_run(tmp_path):
    said: list[str] = []
    metrics = Metrics(tmp_path, 0, tensorboard=False, active=True, say=said.append)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    metrics.write(1, {"train/loss": 1.0})
    metrics.write(2, {"train/loss": 1.0})
    assert len(said) == 1
    assert "training goes on without them" in said[0]


@pytest.mark.fault("F11")
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tiny, tmp_path, monkeypatch, capsys):
    """Writes fail while the disk is full; the run goes on, the old checkpoint stays, and the next save succeeds."""
    from pretrain.checkpoint import save

    write, calls = save.write_hashed, []

    def disk_full_at_second_save(path, data):
        calls.append(path.parent.name)
        if path.parent.name.startswith("step-00000016") and path.name == "config.toml":
            path.write_bytes(data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(save, "write_hashed", disk_full_at_second_save)
    train_here(tiny, "--train.max_steps=20", "--checkpoint.every=8")
    assert "CHECKPOINT NOT WRITTEN" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-00000008", "step-00000020"]


@pytest.mark.fault("F11")
def test_a_run_whose_last_save_failed_says_so(tiny, monkeypatch):
    from pretrain.checkpoint import save

    def disk_full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "write_hashed", disk_full)
    with pytest.raises(RunFailed, match="last checkpoint could not be written"):
        train_here(tiny, "--train.max_steps=2")
