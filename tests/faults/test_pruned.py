"""Commands beside a run that trains on and deletes its older checkpoints: they work on the newest."""

import importlib
import shutil
import time

import pytest
from growth_runs import checkpoint, names, state
from processes import start_command
from support import train_here, write_tiny

from pretrain.cli import main

OPTIONS = ["--train.max_steps=4", "--schedule.total_steps=200", "--train.global_batch_size=2", "--checkpoint.every=2"]
READS = "pretrain.checkpoint.read"
POINTS = ["read_manifest", "verify_hashes", "load_recorded", "Checkpoint.read"]

COMMANDS = ("eval", "sample", "export", "grow", "from")
CASES = [
    pytest.param(name, point, marks=[] if name == "eval" or point == POINTS[-1] else pytest.mark.slow)
    for name in COMMANDS
    for point in POINTS
]
"""Which command meets a removal when; the quick suite has every command and every moment once."""


@pytest.fixture(scope="module")
def old(corpus, tmp_path_factory):
    """A folder with tiny.toml and its run of four steps, with a checkpoint of step 2 too."""
    folder = tmp_path_factory.mktemp("pruned")
    assert train_here(write_tiny(folder, corpus), *OPTIONS) == 0
    return folder


def command(name: str, old, run, new) -> list[str]:
    config, there = str(old / "tiny.toml"), f"--run.dir={new / 'new'}"
    return {
        "eval": ["eval", str(run), "--tokens=64"],
        "sample": ["sample", str(run), "--tokens=1"],
        "export": ["export", str(run), "--out", str(new / "hf"), "--no-check", "--overwrite"],
        "grow": ["grow", str(run), config, there, "--model.n_layers=4", "--schedule.total_steps=200"],
        "from": ["train", config, *OPTIONS, there, "--train.max_steps=1", "--from", str(run)],
    }[name]


@pytest.mark.fault("F43")
@pytest.mark.parametrize(("name", "point"), CASES)
def test_the_newest_is_taken_where_one_is_removed(old, tmp_path, monkeypatch, capsys, name, point):
    run, new = shutil.copytree(old / "run", tmp_path / "run"), tmp_path
    aside = checkpoint(run, 4).rename(tmp_path / "step-00000004")
    module = importlib.import_module(READS)
    owner, attribute = (module.Checkpoint, "read") if "." in point else (module, point)
    work = getattr(owner, attribute)

    def struck(*arguments, **options):
        if aside.exists():  # what a run does: the new one first, then the old one goes
            aside.rename(checkpoint(run, 4))
            shutil.rmtree(checkpoint(run, 2).rename(tmp_path / "deleting"))
        return work(*arguments, **options)

    monkeypatch.setattr(owner, attribute, struck)
    assert main(command(name, old, run, new)) == 0, capsys.readouterr().err
    assert names(run) == ["step-00000004"]
    if name == "from":
        assert state(checkpoint(new / "new", 1))["origin"]["step"] == 4
    if name == "eval":
        assert "step           4" in capsys.readouterr().out


@pytest.mark.fault("F43")
def test_a_step_that_was_named_is_not_replaced_by_another(old, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(old / "run", tmp_path / "run")
    work = importlib.import_module(READS).read_manifest

    def struck(folder):
        shutil.rmtree(checkpoint(run, 2), ignore_errors=True)
        return work(folder)

    monkeypatch.setattr(importlib.import_module(READS), "read_manifest", struck)
    assert main(["eval", str(checkpoint(run, 2))]) == 2
    assert "step-00000002 was removed while it was read" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.fault("F43")
def test_commands_beside_a_real_run(old, tmp_path):
    """It commits every step and keeps one; whatever is asked meanwhile is answered."""
    run, number = tmp_path / "run", 0
    options = ["--checkpoint.every=1", "--checkpoint.keep=1", f"--run.dir={run}", "--train.max_steps=200"]
    process = start_command("train", str(old / "tiny.toml"), *OPTIONS, *options)
    while not (run / "checkpoints" / "latest").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    while process.poll() is None or number < 5:
        name = COMMANDS[number % len(COMMANDS)]
        assert main(command(name, old, run, tmp_path)) == 0, name
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        number += 1
    assert process.returncode == 0, process.communicate()[0]
    print(f"{number} commands")
