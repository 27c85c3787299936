"""train.profile: what it writes, and that it changes nothing else."""

import gzip
import json
from types import SimpleNamespace

import pytest
from support import logged, tensor_hashes, train_here, write_tiny
from torch.autograd import DeviceType

from model.errors import UserError
from pretrain.config import load_config
from pretrain.loop.metrics import StepClock
from pretrain.loop.profile import Profile, operations, table


def test_it_changes_no_number_and_is_no_part_of_what_a_resume_must_keep(corpus, tmp_path):
    """The second part of the run has another value, and replaces the first one's files."""
    run, parts = {}, (["--train.max_steps=8"], [])
    for name, values in (("without", (0, 0)), ("with", (2, 3))):
        (tmp_path / name).mkdir()
        config = write_tiny(tmp_path / name, corpus)
        for options, value in zip(parts, values, strict=True):
            train_here(config, "--schedule.total_steps=16", f"--train.profile={value}", *options)
        run[name] = tmp_path / name / "run"
    assert logged(run["with"]) == logged(run["without"])
    assert tensor_hashes(run["with"], 16) == tensor_hashes(run["without"], 16)
    assert not (run["without"] / "profile").exists()

    folder = run["with"] / "profile"
    assert sorted(path.name for path in folder.iterdir()) == [
        "operations.json",
        "operations.txt",
        "trace-rank0.json.gz",
    ]
    events = json.loads(gzip.decompress((folder / "trace-rank0.json.gz").read_bytes()))["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == 3
    assert any(event.get("name") == "aten::mm" for event in events)
    found = json.loads((folder / "operations.json").read_text())
    assert found["steps"] == 3
    assert sum(row["share"] for row in found["operations"]) == pytest.approx(1)
    products = next(row for row in found["operations"] if row["name"] == "aten::mm")
    assert products["calls"] == sum(event.get("name") == "aten::mm" for event in events) / 3
    assert (folder / "operations.txt").read_text() == table(found["operations"], 3)


def test_a_profiled_step_says_nothing_of_the_speed():
    clock = StepClock()
    for seconds in (1.0, 1.0):
        clock.add(seconds, 100)
    clock.add(50.0, 100, usual=False)
    assert clock.last == 50
    assert clock.tokens_per_second() == 100
    assert clock.percentile_ms(99) == 1000


def event(key, device=DeviceType.CPU, cpu=0.0, gpu=0.0, annotation=False):
    times = {"self_cpu_time_total": cpu, "self_device_time_total": gpu}
    return SimpleNamespace(key=key, device_type=device, count=4, is_user_annotation=annotation, **times)


def test_on_a_gpu_the_device_s_time_counts_once():
    """A kernel's time is given to the operation that launched it as well, and a step's span is seen from both sides."""
    events = [
        event("aten::mm", cpu=10, gpu=3000),
        event("gemm", DeviceType.CUDA, gpu=3000),
        event("softmax", DeviceType.CUDA, gpu=1000),
        event("ProfilerStep*", cpu=500, gpu=9000, annotation=True),
        event("ProfilerStep*", DeviceType.CUDA, gpu=9000, annotation=True),
    ]
    rows = operations(SimpleNamespace(key_averages=lambda: events), steps=2)
    found = {row["name"]: (row["calls"], row["device_ms"], row["share"]) for row in rows}
    assert found["gemm"] == found["aten::mm"] == (2, 1.5, 0.75)
    assert found["softmax"] == (2, 0.5, 0.25)
    assert found["(outside of operations)"] == (2, 0, 0)
    assert len(rows) == 4


def test_what_goes_wrong_costs_the_profile_alone(tiny, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.profiler.profile.export_chrome_trace", full)
    train_here(tiny, "--schedule.total_steps=8", "--train.profile=2")
    assert "profile not made (OSError: [Errno 28] No space left on device); training goes on" in capsys.readouterr().out
    assert len(logged(tmp_path / "run")) == 8
    assert list((tmp_path / "run" / "profile").iterdir()) == []


@pytest.mark.parametrize(("made", "says"), [(3, "made 3 steps, and the first 5"), (7, "profile of 2 steps: ")])
def test_a_run_that_ends_early(tmp_path, made, says):
    said = []
    config = SimpleNamespace(train=SimpleNamespace(profile=4))
    world = SimpleNamespace(is_main=True, device=SimpleNamespace(type="cpu"))
    run = SimpleNamespace(config=config, world=world, dir=tmp_path, console=SimpleNamespace(say=said.append))
    profile = Profile(run)
    for _ in range(made):
        profile.before_step()
        profile.after_step()
    profile.close()
    assert says in said[0]
    assert (tmp_path / "profile").exists() == (made > 5)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("-1", "train.profile: "),
        ("101", "train.profile: "),
        ("yes", "train.profile: "),
        ("56", "train.profile 56 needs steps to 61, and the run ends at step 60; lower it or set 0"),
    ],
)
def test_a_wrong_value_is_one_sentence(tiny, value, says):
    with pytest.raises(UserError, match=says):
        load_config(tiny, [f"--train.profile={value}"])
