"""What a run's folder says of the run while it trains: run.json, samples.jsonl, and the times that are logged."""

import json
import os
import resource
import signal

import pytest
from support import logged, train_here

from pretrain.loop.metrics import Metrics, StepClock
from pretrain.loop.samples import read_samples


def test_a_run_and_its_resume(tiny, tmp_path):
    run = tmp_path / "run"
    settings = ["--checkpoint.every=1", "--eval.every=2", '--eval.prompts=["a", "b c"]', "--schedule.total_steps=4"]
    train_here(tiny, *settings, "--train.max_steps=2")
    first = json.loads((run / "run.json").read_text())
    train_here(tiny, *settings)
    about, summary = (json.loads((run / name).read_text()) for name in ("run.json", "summary.json"))
    assert about["id"] == first["id"]
    assert len(about["id"]) == 32
    for key in ("parameters", "device", "versions"):
        assert about[key] == summary[key]
    planned = about["planned_memory"]
    assert sum(planned["items"].values()) == planned["total"] == summary["planned_memory_bytes"]
    assert [(s["step"], s["prompt"]) for s in read_samples(run / "samples.jsonl", 4)] == [
        (2, "a"), (2, "b c"), (4, "a"), (4, "b c"),
    ]  # fmt: skip
    figures = {key: [float(v) for v in logged(run, f"perf/{key}").values()] for key in TIMES}
    for low, middle, high in zip(*(figures[f"step_ms_p{percent}"] for percent in (50, 90, 99)), strict=True):
        assert low <= middle <= high
    assert figures["train_seconds"] == sorted(figures["train_seconds"])
    assert figures["train_seconds"][-1] == summary["train_seconds"]
    assert figures["checkpoint_wait"][0] == 0  # it is that before this step, and a process's first step has none
    assert 0 < figures["checkpoint_wait"][1] < 1


TIMES = ("step_ms_p50", "step_ms_p90", "step_ms_p99", "train_seconds", "checkpoint_wait")


def test_the_wait_for_checkpoints_is_a_share_of_the_time_since_it_was_asked():
    clock = StepClock()
    assert clock.take_checkpoint_wait() == 0
    clock.add(2.0, 10)
    clock.add_save(1.0)
    clock.add(1.0, 10)
    assert clock.take_checkpoint_wait() == pytest.approx(0.25)
    clock.add(2.0, 10)
    assert clock.take_checkpoint_wait() == 0


def test_samples_for_which_there_is_no_room_come_later(tmp_path):
    said: list[str] = []
    metrics = Metrics(tmp_path, 0, tensorboard=False, active=True, say=said.append)
    metrics.write_sample(1, "p", "one")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(tmp_path / "samples.jsonl") + 10, limits[1]))
    try:
        metrics.write_sample(2, "p", "two")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [s["text"] for s in read_samples(tmp_path / "samples.jsonl", 9)] == ["one"]
    metrics.write_sample(3, "p", "three")
    assert [s["text"] for s in read_samples(tmp_path / "samples.jsonl", 9)] == ["one", "two", "three"]
    assert [text.split(" (")[0] for text in said] == [
        "samples cannot be written", "samples are written again, with what was kept meanwhile",
    ]  # fmt: skip
