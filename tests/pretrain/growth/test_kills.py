"""A run that is killed, stopped or damaged around its growth ends as if nothing had happened, and grows once."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from growth_runs import (
    GALORE,
    GROWS,
    GROWTH,
    LAST,
    checkpoint,
    ending,
    grown_run,
    names,
    rewound,
    state,
    summary,
    tiny_config,
)
from processes import run_command
from support import train_here

SMALL, GROWN, FINAL = f"step-{GROWS:08d}", f"step-{GROWS:08d}-grown", f"step-{LAST:08d}"

# Three commits of five files: the small model's last one, the grown one, and the end. Second: whether it grows again.
POINTS = {
    "mid_file:3": True,
    "before_rename:1": True,
    "before_latest:1": True,
    "before_growth": True,
    "mid_file:6": True,
    "mid_file:7": True,
    "shard:2": True,
    "before_manifest:2": True,
    "mid_file:10": True,
    "before_rename:2": True,
    "before_latest:2": False,
    "after_growth": False,
    "prune:1": False,
    "shard:3": False,
    "before_rename:3": False,
    "prune:2": False,
}
QUICK = ("before_growth", "mid_file:6", "before_rename:2", "after_growth", "prune:1")
KEPT = {"after_growth": "damaged", "before_rename:3": "kept"}
"""Killed with more than one checkpoint kept."""


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory) -> Path:
    return tiny_config(tmp_path_factory.mktemp("config"), corpus)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> Path:
    return grown_run(config, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture(scope="module")
def killed(config, tmp_path_factory, request) -> Path:
    """Runs killed at each point with checkpoint.keep = 1, in a folder of its name, and those of KEPT."""
    folder = tmp_path_factory.mktemp("killed")
    slow = any(item.get_closest_marker("slow") for item in request.session.items)
    jobs = [
        (point, [f"--run.dir={folder}/{point}", "--checkpoint.keep=1"]) for point in POINTS if slow or point in QUICK
    ]
    jobs += [(point, [f"--run.dir={folder}/{name}"]) for point, name in KEPT.items()]
    for point, options in jobs:
        status, output = run_command("train", str(config), *GROWTH, *options, fault=point)
        assert status == -signal.SIGKILL, output
    return folder


@pytest.mark.fault("F27")
@pytest.mark.parametrize(
    ("point", "again"),
    [pytest.param(point, again, marks=() if point in QUICK else pytest.mark.slow) for point, again in POINTS.items()],
)
def test_a_kill_around_the_growth(config, undisturbed, killed, capsys, point, again):
    run = killed / point
    assert (run / "checkpoints" / GROWN).exists() == (not again and point != "prune:2")
    assert not (run / "summary.json").exists()
    train_here(config, *GROWTH, f"--run.dir={run}", "--checkpoint.keep=1")
    assert capsys.readouterr().out.count("growing 1 layer to 2") == again
    assert ending(run) == ending(undisturbed)
    assert names(run) == [FINAL]


def flip(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.fault("F27")
@pytest.mark.fault("F5")
@pytest.mark.parametrize("name", KEPT.values())
def test_a_damaged_grown_checkpoint_is_grown_again(config, undisturbed, killed, capsys, name):
    run = killed / name
    assert names(run)[:2] == [SMALL, GROWN]
    before = (run / "checkpoints" / GROWN / "state.json").read_bytes()
    flip(run / "checkpoints" / GROWN)
    train_here(config, *GROWTH, f"--run.dir={run}")
    output = capsys.readouterr().out
    assert f"checkpoint {GROWN} is not usable" in output
    assert output.count("growing 1 layer to 2") == 1
    assert ending(run) == ending(undisturbed)
    assert names(run) == [SMALL, GROWN, f"{GROWN}.corrupt", FINAL]
    assert (run / "checkpoints" / GROWN / "state.json").read_bytes() == before


@pytest.mark.fault("F6")
def test_without_the_small_checkpoint_a_damaged_grown_one_is_the_end(config, undisturbed, tmp_path):
    from model.errors import UserError

    run = rewound(undisturbed, tmp_path / "run", GROWN)
    shutil.rmtree(run / "checkpoints" / SMALL)
    flip(run / "checkpoints" / GROWN)
    with pytest.raises(UserError, match="no usable checkpoint is left"):
        train_here(config, *GROWTH, f"--run.dir={run}")
    assert names(run) == [f"{GROWN}.corrupt"]


@pytest.mark.fault("F27")
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("galore", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pauses",
    [(GROWS, LAST), (GROWS + 1, LAST), (2, GROWS, GROWS, GROWS + 4, LAST)],
    ids=lambda p: "-".join(map(str, p)),
)
def test_pauses(config, undisturbed, tmp_path_factory, tmp_path, pauses, optimizer):
    """At the growth step the small model is saved and summed up; the next command grows it."""
    options = GALORE if optimizer == "galore" else []
    straight = undisturbed if not options else grown_run(config, tmp_path / "straight", *options)
    run = tmp_path / "run"
    for pause in pauses:
        train_here(config, *GROWTH, *options, f"--run.dir={run}", f"--train.max_steps={pause}", "--checkpoint.keep=1")
        assert names(run) == [f"step-{pause:08d}"]
        assert summary(run)["step"] == pause
        assert summary(run)["growth_stages"] == 1 + (pause > GROWS)
        assert [stage["n_layers"] for stage in summary(run)["stages"]] == ([1, 2] if pause > GROWS else [1])
    assert ending(run) == ending(straight)


@pytest.mark.slow
@pytest.mark.fault("F27")
@pytest.mark.parametrize("point", ["before_growth", "mid_file:6", "after_growth"])
def test_a_kill_around_a_growth_in_width(config, tmp_path, point):
    wider = ["--growth.dim=16", "--growth.n_heads=1"]
    run = tmp_path / "run"
    status, output = run_command("train", str(config), *GROWTH, *wider, f"--run.dir={run}", fault=point)
    assert status == -signal.SIGKILL, output
    train_here(config, *GROWTH, *wider, f"--run.dir={run}")
    assert ending(run) == ending(grown_run(config, tmp_path / "undisturbed", *wider))


STOPS = {f"micro_step:{2 * (GROWS - 1) + 1}": f"step-{GROWS - 1:08d}", "before_growth": GROWN, "after_growth": GROWN}
"""Where the signal comes, and the newest checkpoint then: a growth that has begun is made and committed."""


@pytest.mark.fault("F14")
@pytest.mark.parametrize(("point", "newest"), STOPS.items())
def test_sigterm(config, undisturbed, tmp_path, point, newest):
    options = ["train", str(config), *GROWTH, f"--run.dir={tmp_path}/run"]
    status, output = run_command(*options, fault=point, SPARLOW_FAULT_SIGNAL="SIGTERM")
    assert status == 143, output
    assert names(tmp_path / "run")[-1] == newest
    assert train_here(config, *options[2:]) == 0
    assert ending(tmp_path / "run") == ending(undisturbed)


@pytest.mark.fault("F14")
@pytest.mark.parametrize("step", [GROWS, pytest.param(GROWS + 2, marks=pytest.mark.slow)])
def test_an_evaluation_that_is_cut_short_at_the_growth_is_made_up_for(config, tmp_path, monkeypatch, step):
    from pretrain.loop import train

    options = [f"--eval.every={step}"]
    straight = grown_run(config, tmp_path / "straight", *options)
    evaluate, run = train.evaluate, tmp_path / "run"

    def struck(*arguments):
        monkeypatch.setattr(train, "evaluate", evaluate)
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(train, "evaluate", struck)
    assert train_here(config, *GROWTH, *options, f"--run.dir={run}") == 143
    assert state(checkpoint(run, step))["evaluation_due"]
    assert train_here(config, *GROWTH, *options, f"--run.dir={run}") == 0
    assert ending(run) == ending(straight)


@pytest.mark.fault("F11")
def test_a_full_disk_during_the_growth_leaves_the_small_model(config, undisturbed, tmp_path, monkeypatch):
    from model.errors import RunFailed
    from pretrain.machine import files

    run, visits = tmp_path / "run", []
    monkeypatch.setattr(files, "fault_flag", lambda point: visits.append(point) or len(visits) == 7)
    with pytest.raises(RunFailed, match=r"the grown model could not be written to .* free some disk space"):
        train_here(config, *GROWTH, f"--run.dir={run}")
    monkeypatch.undo()
    assert names(run) == [SMALL]
    train_here(config, *GROWTH, f"--run.dir={run}")
    assert ending(run) == ending(undisturbed)
