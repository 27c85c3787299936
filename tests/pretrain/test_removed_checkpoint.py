"""A checkpoint that is removed while a command reads it, as by a run that prunes: one sentence, at whatever moment."""

import importlib
import shutil

import pytest
from support import train_here, write_tiny

from pretrain.cli import main

OPTIONS = ["--train.max_steps=2", "--schedule.total_steps=6"]


@pytest.fixture(scope="module")
def old(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("removed")
    assert train_here(write_tiny(folder, corpus), *OPTIONS) == 0
    return folder


READS = "pretrain.checkpoint.read"
TENSORS, OPENED = f"{READS}.Checkpoint.read", [f"{READS}.load_recorded", f"{READS}.safe_open"]
NAMED = [f"{READS}.read_manifest", f"{READS}.verify_hashes", *OPENED, TENSORS]
COMMANDS = {
    "from": [*NAMED, "pretrain.loop.origin.file_sha256"],
    "resume": ["pretrain.checkpoint.store.read_manifest", "pretrain.checkpoint.store.verify_hashes", *OPENED, TENSORS],
    "eval": NAMED,
    "sample": NAMED,
    "export": [*NAMED, "pretrain.using.export.write_folder"],
    "grow": NAMED,
}


@pytest.mark.fault("F43")
@pytest.mark.parametrize(("command", "point"), [(name, point) for name, points in COMMANDS.items() for point in points])
def test_one_sentence(old, corpus, tmp_path, monkeypatch, capsys, command, point):
    run, config = tmp_path / "run", str(old / "tiny.toml")
    shutil.copytree(old / "run", run)
    source = run / "checkpoints" / "step-00000002"
    where, _, name = point.rpartition(".")
    owner = importlib.import_module(READS).Checkpoint if point == TENSORS else importlib.import_module(where)
    work = getattr(owner, name)

    def struck(*arguments, **options):
        if source.exists():
            shutil.rmtree(source.rename(source.with_name("step-00000002.deleting")))
        return work(*arguments, **options)

    monkeypatch.setattr(owner, name, struck)
    new = f"--run.dir={tmp_path / 'new'}"
    status = main(
        {
            "from": ["train", config, *OPTIONS, new, "--from", str(run)],
            "resume": ["train", config, *OPTIONS, f"--run.dir={run}", "--train.max_steps=3"],
            "grow": ["grow", str(run), config, new, "--model.n_layers=4"],
            "export": ["export", str(run), "--out", str(tmp_path / "hf")],
        }.get(command, [command, str(run)])
    )
    said = capsys.readouterr().err
    assert status == 2, said
    assert "step-00000002 was removed while it was read" in said.splitlines()[-1]
    assert not (tmp_path / "hf").exists()
