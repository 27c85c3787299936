"""Spikes and steps that are not finite, in whole runs: off, log, skip and rewind; kills on the way back; two ranks."""

import json
import math
import signal
import time

import pytest
from processes import WORLD, run_command, run_world
from support import edit_checkpoint, logged, tensor_hashes, train_here, write_tiny

from model.errors import RunFailed, UserError
from pretrain.checkpoint.writing import Writing
from pretrain.config import load_config
from pretrain.config.tables import GuardConfig
from pretrain.engine.base import Update
from pretrain.loop.guard import Guard
from pretrain.loop.state import TrainState
from pretrain.machine import fault

SHORT = ["--guard.warmup=8", "--checkpoint.every=10", "--train.micro_batch_size=8", "--train.max_steps=24"]
"""One micro-step a step, so that the n-th visit of a fault is step n of a process that begins at the start."""


@pytest.fixture
def strike(monkeypatch):
    """strike(text): from now on SPARLOW_FAULT is `text`, and no point has been visited."""

    def arm(text: str) -> None:
        monkeypatch.setenv("SPARLOW_FAULT", text)
        fault._visits.clear()

    yield arm
    fault._visits.clear()


def state(run, step, more=""):
    return json.loads((run / "checkpoints" / f"step-{step:08d}{more}" / "state.json").read_text())


def guard_of(**keys):
    return Guard(GuardConfig(**keys), TrainState())


def walk(guard, losses):
    """The steps, counted from 0, that a run with these losses applies."""
    applied = []
    for index, loss in enumerate(losses):
        update = Update(1.0, True) if guard.accepts(loss) else Update(math.nan, False)
        guard.record(loss, update)
        applied += [index] if update.applied else []
    return applied


@pytest.mark.fault("F20b")
@pytest.mark.parametrize("spikes", ["log", "skip", "rewind"])
def test_one_step_that_is_not_finite_costs_one_step(spikes):
    guard = guard_of(spikes=spikes)
    losses = [5 + 0.1 * math.sin(i) for i in range(300)]
    losses[99] = math.nan
    assert walk(guard, losses[:110]) == [i for i in range(110) if i != 99]
    assert all(map(math.isfinite, guard.state.losses))
    assert guard.judge_loss(6.0), "blind after a step that is not finite"
    assert walk(guard, losses[110:]) == list(range(190))
    assert guard.state.skips == {"loss_not_finite": 1}
    assert len(guard.state.losses) == 128


@pytest.mark.fault("F21")
def test_a_spike_is_six_deviations_above_the_steps_before_it():
    values = [1.0, 3.0] * 40  # mean 2, deviation 1.006
    for value, spike in ((8.0, False), (8.1, True), (-8.1, False)):
        guard = guard_of(spikes="skip")
        walk(guard, values)
        assert (guard.judge_loss(value) is not None) == spike
    early = guard_of(spikes="skip")
    walk(early, values[:63])
    assert early.accepts(1e9)
    level = guard_of(spikes="skip")
    walk(level, [0.1] * 100)
    assert level.accepts(0.1)
    assert not level.accepts(0.1001)


@pytest.mark.fault("F21")
def test_a_new_level_is_no_spike_for_ever_where_spikes_are_applied():
    guard = guard_of(spikes="log")
    walk(guard, [5 + 0.01 * math.sin(i) for i in range(100)] + [9 + 0.01 * math.sin(i) for i in range(100)])
    assert 1 <= guard.state.spikes < 5


@pytest.mark.fault("F20")
@pytest.mark.fault("F21")
def test_spikes_that_do_not_end_give_up():
    guard = guard_of(spikes="skip", max_consecutive_skips=3)
    with pytest.raises(RunFailed, match=r"3 updates in a row were skipped.*standard deviations.*max_consecutive_skips"):
        walk(guard, [5 + 0.01 * math.sin(i) for i in range(100)] + [9.0] * 9)


def test_a_warm_up_that_never_ends_is_refused(tiny):
    with pytest.raises(UserError, match=r"guard\.warmup 64 is more than guard\.window 32"):
        load_config(tiny, ["--guard.window=32"])


@pytest.mark.fault("F19")
@pytest.mark.parametrize("point", ["nan_loss", pytest.param("nan_gradient", marks=pytest.mark.slow)])
def test_a_bad_step_is_skipped_and_the_rest_goes_on(tiny, tmp_path, strike, point, capsys):
    strike(f"{point}:3")
    options = ["--checkpoint.every=1", "--checkpoint.keep=9", "--train.micro_batch_size=8", "--train.max_steps=4"]
    train_here(tiny, *options)
    run = tmp_path / "run"
    before, after, later = (tensor_hashes(run, step) for step in (2, 3, 4))
    assert before == after != later
    what = point.removeprefix("nan_")
    assert state(run, 4)["skips"] == {f"{what}_not_finite": 1}
    assert (state(run, 4)["updates"], state(run, 4)["cursor"]) == (3, 32)
    assert f"step 3: the {what} is not finite; update skipped (1 so far)" in capsys.readouterr().out
    assert list(logged(run, f"guard/{what}_not_finite")) == [3, 4]


@pytest.mark.fault("F21")
@pytest.mark.parametrize(
    ("point", "spikes"),
    [
        ("gradient_spike", "skip"),
        pytest.param("loss_spike", "log", marks=pytest.mark.slow),
        ("loss_spike", "skip"),
        pytest.param("loss_spike", "off", marks=pytest.mark.slow),
        pytest.param("gradient_spike", "off", marks=pytest.mark.slow),
        pytest.param("gradient_spike", "log", marks=pytest.mark.slow),
    ],
)
def test_a_spike_in_a_run(tiny, tmp_path, strike, spikes, point, capsys):
    strike(f"{point}:13")
    options = [*SHORT, f"--guard.spikes={spikes}", "--checkpoint.every=1", "--checkpoint.keep=99"]
    train_here(tiny, *options, "--train.max_steps=14")
    run = tmp_path / "run"
    applied = tensor_hashes(run, 12) != tensor_hashes(run, 13)
    said = [line for line in capsys.readouterr().out.splitlines() if "standard deviations above" in line]
    assert (applied, len(said)) == {"off": (True, 0), "log": (True, 1), "skip": (False, 1)}[spikes]
    assert state(run, 14)["spikes"] == (spikes != "off")
    assert state(run, 14)["skips"] == ({point: 1} if spikes == "skip" else {})
    assert len(state(run, 14)["losses"]) == {"off": 0, "log": 14, "skip": 13}[spikes]


@pytest.fixture(scope="module")
def gone_back(corpus, tmp_path_factory):
    """Hashes, losses and state of a run that goes back from step 17 to step 10, and its folder."""
    folder = tmp_path_factory.mktemp("gone_back")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARLOW_FAULT", "loss_spike:17")
        fault._visits.clear()
        train_here(write_tiny(folder, corpus), *SHORT, "--guard.spikes=rewind")
    fault._visits.clear()
    return ending(folder / "run")


def ending(run):
    kept = state(run, 24)
    kept.pop("train_seconds")
    return tensor_hashes(run, 24), logged(run), kept


@pytest.mark.fault("F21")
def test_going_back_leaves_the_data_out(tiny, tmp_path, gone_back):
    """Equal to a run paused at step 10 whose cursor is moved behind the spike by hand."""
    hashes, losses, ended = gone_back
    gap = {"step": 17, "to": 10, "cursor": 80, "cursor_after": 136, "reason": "loss_spike"}
    assert len(ended["rewinds"]) == 1
    assert ended["rewinds"][0].items() >= gap.items()
    assert (ended["step"], ended["cursor"], ended["updates"], ended["spikes"]) == (24, 136 + 14 * 8, 24, 1)
    assert list(losses) == list(range(1, 25))
    train_here(tiny, *SHORT, "--train.max_steps=10")
    folder = tmp_path / "run" / "checkpoints" / "step-00000010"
    moved = state(tmp_path / "run", 10) | {"cursor": 136}
    edit_checkpoint(folder, files={"state.json": json.dumps(moved).encode()})
    train_here(tiny, *SHORT)
    assert (tensor_hashes(tmp_path / "run", 24), logged(tmp_path / "run")) == (hashes, losses)


@pytest.mark.fault("F21")
def test_the_save_on_its_way_is_what_a_run_goes_back_to(tiny, tmp_path, strike, monkeypatch):
    """The spike comes at the step after a save, whose thread is slow."""
    write = Writing.run
    monkeypatch.setattr(Writing, "run", lambda self: time.sleep(0.5) or write(self))
    strike("loss_spike:11")
    train_here(tiny, *SHORT, "--guard.spikes=rewind", "--train.max_steps=12")
    assert [(way["step"], way["to"]) for way in state(tmp_path / "run", 12)["rewinds"]] == [(11, 10)]


@pytest.mark.fault("F21")
@pytest.mark.fault("F14")
def test_a_pause_on_the_way_does_not_matter(tiny, tmp_path, gone_back, strike):
    """Its checkpoint at step 14 is not gone back to, and does not stay."""
    options = [*SHORT, "--guard.spikes=rewind"]
    train_here(tiny, *options, "--train.max_steps=14")
    strike("loss_spike:3")
    train_here(tiny, *options)
    assert ending(tmp_path / "run") == gone_back
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-00000010-rewound1", "step-00000020", "step-00000024"]


KILLS = ["before_rewind", "in_rewind", "shard:2", "before_rename:2", "before_latest:2", "after_rewind"]
QUICK = ("in_rewind",)


@pytest.mark.fault("F3")
@pytest.mark.fault("F21")
@pytest.mark.parametrize("point", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in KILLS])
def test_a_kill_on_the_way_back_changes_nothing(tiny, tmp_path, gone_back, strike, point):
    """Before the commit the rerun, from step 10, meets the spike again; after it, the rerun begins behind it."""
    options = [*SHORT, "--guard.spikes=rewind"]
    status, output = run_command("train", str(tiny), *options, fault=f"loss_spike:17,{point}")
    assert status == -signal.SIGKILL, output
    committed = (tmp_path / "run" / "checkpoints" / "step-00000010-rewound1").exists()
    assert committed == (point in ("before_latest:2", "after_rewind"))
    strike("" if committed else "loss_spike:7")
    train_here(tiny, *options)
    assert ending(tmp_path / "run") == gone_back


@pytest.mark.slow
@pytest.mark.fault("F21")
@pytest.mark.fault("F27")
def test_a_run_that_grows_goes_back_no_further_than_its_growth(tiny, tmp_path, strike):
    """With one document to a row; and a kill on the way back to the grown model changes nothing."""
    options = [*SHORT, "--guard.spikes=rewind", "--guard.warmup=3", "--guard.sigma=100.0", "--data.packing=document"]
    options += ["--growth.enabled=true", "--growth.factor=2", "--growth.at=0.5", "--schedule.total_steps=24"]
    straight, killed = tmp_path / "straight", tmp_path / "run"
    strike("loss_spike:17")
    train_here(tiny, *options, f"--run.dir={straight}")
    assert (straight / "checkpoints" / "step-00000012-grown-rewound1").is_dir()
    ended = state(straight, 24)
    assert (ended["stage"], ended["stage_start"], ended["rewinds"][0]["to"]) == (1, 12, 12)
    status, output = run_command("train", str(tiny), *options, fault="loss_spike:17,in_rewind")
    assert status == -signal.SIGKILL, output
    strike("loss_spike:5")
    train_here(tiny, *options)
    assert ending(killed) == ending(straight)


@pytest.mark.slow
@pytest.mark.fault("F21")
def test_spikes_that_come_again_end_the_run(tiny, strike):
    strike("loss_spike:17,loss_spike:20,loss_spike:22")
    options = [*SHORT, "--guard.spikes=rewind", "--guard.max_rewinds=2"]
    with pytest.raises(RunFailed, match=r"step 12: the loss .* gone back 2 times already \(guard\.max_rewinds\)"):
        train_here(tiny, *options)


@pytest.mark.fault("F21")
def test_before_the_first_checkpoint_a_spike_is_skipped(tiny, tmp_path, strike, capsys):
    strike("loss_spike:9")
    train_here(tiny, *SHORT, "--guard.spikes=rewind", "--train.max_steps=10")
    assert "step 9: there is no checkpoint yet to go back to" in capsys.readouterr().out
    assert (state(tmp_path / "run", 10)["skips"], state(tmp_path / "run", 10)["rewinds"]) == ({"loss_spike": 1}, [])


PER_LAYER = ["--linear.name=dense", "--optimizer.name=q_galore", "--optimizer.rank=8", "--optimizer.update=per_layer"]
PER_LAYER += ["--train.micro_batch_size=8", "--train.grad_clip=0.0", "--checkpoint.every=1", "--checkpoint.keep=99"]


@pytest.mark.fault("F19")
@pytest.mark.fault("F38")
@pytest.mark.parametrize("point", ["nan_loss", "nan_gradient", pytest.param("loss_spike", marks=pytest.mark.slow)])
def test_updates_inside_of_the_backward_pass_are_skipped_whole(tiny, tmp_path, strike, point):
    strike(f"{point}:13")
    train_here(tiny, *PER_LAYER, "--guard.spikes=skip", "--guard.warmup=8", "--train.max_steps=14")
    run = tmp_path / "run"
    assert tensor_hashes(run, 12) == tensor_hashes(run, 13) != tensor_hashes(run, 14)
    assert sum(state(run, 14)["skips"].values()) == 1


@pytest.mark.fault("F38")
@pytest.mark.parametrize("spikes", ["log", pytest.param("rewind", marks=pytest.mark.slow)])
def test_a_gradient_that_breaks_within_the_backward_pass(tiny, tmp_path, monkeypatch, spikes, capsys):
    """What comes after it stays, and is told of as partly applied; rewind goes back from it."""
    from pretrain.optim.own_optimizer import OwnOptimizer

    init, strikes = OwnOptimizer.__init__, iter(range(1, 99))

    def broken(gradient):
        if gradient.is_meta:  # the plan's
            return gradient
        return gradient * (math.inf if next(strikes) == 3 else 1.0)

    def with_a_break(self, named, *arguments, **keywords):
        dict(named)["layers.0.ffn_norm.weight"].register_hook(broken)
        init(self, named, *arguments, **keywords)

    monkeypatch.setattr(OwnOptimizer, "__init__", with_a_break)
    train_here(tiny, *PER_LAYER, f"--guard.spikes={spikes}", "--train.max_steps=4")
    said = "step 3: the gradient is not finite; weights before it in the backward pass have moved"
    assert said in capsys.readouterr().out
    run = tmp_path / "run"
    ended = state(run, 4)
    if spikes == "rewind":
        assert (ended["skips"], ended["rewinds"][0]["reason"]) == ({}, "gradient_not_finite")
    else:
        assert (ended["skips"], ended["skipped_steps"]) == ({"partly_applied": 1}, 1)


@pytest.mark.fault("F19")
@pytest.mark.fault("F21")
def test_what_strikes_one_of_two_ranks_is_skipped_on_both(corpus, tmp_path):
    """world.py compares the weights of both ranks after each run, to the bit."""
    config = write_tiny(tmp_path, corpus)
    common = ["--checkpoint.every=1", "--checkpoint.keep=9", "--train.max_steps=6", "--train.micro_batch_size=4"]
    common += ["--guard.warmup=3", "--guard.sigma=200.0", "--guard.spikes=skip"]
    galore = ["--linear.name=dense", "--optimizer.name=galore_adamw", "--optimizer.rank=8"]
    kinds = {"zero0": [], "zero2": ["--parallel.zero_stage=2"], "galore": galore}
    runs = [[*common, *options, f"--run.dir={tmp_path / name}"] for name, options in kinds.items()]
    faults = "nan_loss:4/1,nan_gradient:10/1,loss_spike:17/1"  # steps 4, 4 and 5 of the three runs
    run_world(2, WORLD, str(config), json.dumps(runs), SPARLOW_FAULT=faults)
    reasons = {"zero0": (4, "loss_not_finite"), "zero2": (4, "gradient_not_finite"), "galore": (5, "loss_spike")}
    for name, (step, reason) in reasons.items():
        run = tmp_path / name
        assert state(run, 6)["skips"] == {reason: 1}, name
        before, after, later = (tensor_hashes(run, number) for number in (step - 1, step, step + 1))
        assert before == after != later, name
