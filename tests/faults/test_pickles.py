"""Pickles whose code leaves a mark, in the place of every file that a command reads: refused, and never run."""

import io
import os
import pickle
import shutil

import pytest
import torch
from growth_runs import checkpoint
from support import edit_checkpoint, train_here, write_tiny

from model.errors import UserError
from model.hf import load_folder
from pretrain.cli import main

KINDS = ("pickle", "torch.save")


class Bomb:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture(scope="module")
def mark(tmp_path_factory):
    return tmp_path_factory.mktemp("marks") / "mark"


@pytest.fixture(scope="module")
def bombs(mark) -> dict[str, bytes]:
    """Bytes that make the folder `mark` when they are unpickled."""
    file = io.BytesIO()
    torch.save({"model": Bomb(mark)}, file)
    bombs = dict(zip(KINDS, (pickle.dumps(Bomb(mark)), file.getvalue()), strict=True))
    for load in (lambda: pickle.loads(bombs["pickle"]), lambda: torch.load(file, weights_only=False)):
        file.seek(0)
        load()
        mark.rmdir()  # so it works
    return bombs


@pytest.fixture(params=[KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def bomb(request, bombs, mark):
    yield bombs[request.param]
    assert not mark.exists()


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A folder with tiny.toml, the corpus and a run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(corpus, folder / "data")
    assert train_here(write_tiny(folder, folder / "data"), "--train.max_steps=1") == 0
    return folder


def refused(*arguments: str, capsys) -> None:
    capsys.readouterr()
    status = main(arguments)
    said = capsys.readouterr().err
    assert status == 2, (arguments, said)
    assert said.count("\n") == 1, said


@pytest.mark.fault("F9", "F45")
@pytest.mark.parametrize("name", ["tensors-00000.safetensors", "state.json", "config.toml", "tokenizer.model"])
def test_in_a_checkpoint_whose_manifest_agrees(trained, tmp_path, bomb, capsys, name):
    run, config = shutil.copytree(trained / "run", tmp_path / "run"), str(trained / "tiny.toml")
    edit_checkpoint(checkpoint(run, 1), files={name: bomb})
    new = f"--run.dir={tmp_path}/new"
    commands = [[command, str(run)] for command in ("eval", "sample")]
    commands += [["export", str(run), "--out", str(tmp_path / "hf")], ["grow", str(run), config, new]]
    if name != "tokenizer.model":
        commands.append(["train", config, new, "--from", str(run)])
        commands.append(["train", config, f"--run.dir={run}"])  # last, as it sets the checkpoint aside
    for command in commands:
        refused(*command, capsys=capsys)


@pytest.mark.fault("F9")
def test_beside_the_files_of_a_checkpoint(trained, tmp_path, bomb):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    for name in (".metadata", "pytorch_model.bin", "mp_rank_00_model_states.pt", "zero_to_fp32.py", "optimizer.pt"):
        (checkpoint(run, 1) / name).write_bytes(bomb)
    assert main(["eval", str(run)]) == 0
    assert train_here(trained / "tiny.toml", "--train.max_steps=2", f"--run.dir={run}") == 0


@pytest.mark.fault("F9")
@pytest.mark.parametrize("ending", ["pt", "model", "safetensors", "toml"])
def test_as_the_argument_of_every_command(trained, tmp_path, bomb, capsys, ending):
    path, config = str(tmp_path / f"file.{ending}"), str(trained / "tiny.toml")
    (tmp_path / f"file.{ending}").write_bytes(bomb)
    for command in ("eval", "sample", "train", "plan", "report"):
        refused(command, path, capsys=capsys)
    out = ["--out", str(tmp_path / "out")]
    refused("export", path, *out, capsys=capsys)
    refused("grow", path, config, f"--run.dir={tmp_path}/new", capsys=capsys)
    refused("train", config, f"--run.dir={tmp_path}/new", "--from", path, capsys=capsys)
    refused("prepare", "--text", path, *out, capsys=capsys)
    refused("prepare", "--hf", path, *out, capsys=capsys)
    refused("prepare", "--tokenizer", path, *out, capsys=capsys)
    assert sorted(found.name for found in tmp_path.iterdir()) == [f"file.{ending}"]


@pytest.mark.fault("F9", "F45")
@pytest.mark.parametrize("ending", ["txt", "jsonl", "jsonl.gz", "json.zst", "parquet", "arrow", "csv"])
def test_as_text_to_prepare(tmp_path, bomb, capsys, ending):
    (tmp_path / f"file.{ending}").write_bytes(bomb)
    for option in ("--text", "--hf"):
        assert main(["prepare", option, str(tmp_path), "--out", str(tmp_path / "out"), "--vocab-size", "320"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.fault("F9", "F45")
def test_in_a_prepared_corpus(trained, tmp_path, bomb, capsys):
    names = sorted(path.name for path in (trained / "data").iterdir())
    assert len(names) > 4
    for name in names:
        data = shutil.copytree(trained / "data", tmp_path / name)
        (data / name).write_bytes(bomb)
        command = ["train", str(trained / "tiny.toml"), f"--data.path={data}", f"--run.dir={tmp_path}/new"]
        if name == "blocks.json":  # not needed: whole files are compared then
            assert main([*command, "--train.max_steps=1"]) == 0
            shutil.rmtree(tmp_path / "new")
        else:
            refused(*command, capsys=capsys)


@pytest.mark.fault("F9", "F45")
def test_in_the_files_of_a_run(trained, tmp_path, bomb, capsys):
    """They are read again by `report` and by the next `train`."""
    for name in ("metrics.jsonl", "summary.json", "resolved.toml", "checkpoints/latest", "checkpoints/lock"):
        run = shutil.copytree(trained / "run", tmp_path / name.replace("/", "-"))
        (run / name).write_bytes(bomb)
        if "checkpoints" not in name:
            assert main(["report", str(run)]) in (0, 2)
        assert main(["train", str(trained / "tiny.toml"), "--train.max_steps=2", f"--run.dir={run}"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.fault("F9", "F45")
def test_in_a_folder_of_hugging_face(trained, tmp_path, bomb):
    assert main(["export", str(trained / "run"), "--no-check", "--out", str(tmp_path / "hf")]) == 0
    for name, more in {"config.json": {}, "model.safetensors": {}, "pytorch_model.bin": {"model.safetensors"}}.items():
        folder = shutil.copytree(tmp_path / "hf", tmp_path / name)
        for other in more:
            (folder / other).unlink()
        (folder / name).write_bytes(bomb)
        with pytest.raises(UserError):
            dict(load_folder(folder)[1])
