"""Places that cannot be written: one sentence, and nothing changed."""

import os

import pytest

from pretrain.cli import main


def a_file(folder):
    (folder / "place").write_text("here")
    return folder / "place"


def below_a_file(folder):
    return a_file(folder) / "run"


def a_name_too_long(folder):
    return folder / ("x" * 300)


def a_folder_of_the_kernel(folder):
    return f"/proc/{os.getpid()}/run"


def a_link_to_itself(folder):
    (folder / "place").symlink_to("place")
    return folder / "place"


def a_folder_without_rights(folder):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (folder / "closed").mkdir(mode=0o500)
    return folder / "closed" / "run"


PLACES = [a_file, below_a_file, a_name_too_long, a_folder_of_the_kernel, a_link_to_itself, a_folder_without_rights]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    from support import train_here, write_tiny

    folder = tmp_path_factory.mktemp("trained")
    assert train_here(write_tiny(folder, corpus), "--train.max_steps=1") == 0
    return folder


@pytest.mark.fault("F13")
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_place_that_cannot_be_written(trained, corpus, tmp_path, capsys, place):
    path = place(tmp_path)
    before = sorted(found.name for found in tmp_path.rglob("*"))
    config, run, out = str(trained / "tiny.toml"), str(trained / "run"), ["--out", str(path)]
    for command in (
        ["train", config, f"--run.dir={path}"],
        ["train", config, f"--run.dir={path}", "--from", run],
        ["grow", run, config, f"--run.dir={path}", "--model.n_layers=4"],
        ["export", run, *out],
        ["prepare", "--text", str(corpus.parent / "text"), "--vocab-size", "320", *out],
        ["report", run, *out],
    ):
        assert main(command) == 2, command
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"sparlow {command[0]}: "), said
        assert str(path)[:80] in said or "run.dir" in said, said
    assert sorted(found.name for found in tmp_path.rglob("*")) == before


@pytest.mark.fault("F13")
@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "resolved.toml", "checkpoints/lock"])
def test_something_else_in_the_run_folder(tiny, tmp_path, capsys, name):
    """A file where a folder should be, a folder where a file should be."""
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("") if name == "checkpoints" else path.mkdir()
    assert main(["train", str(tiny), "--train.max_steps=1"]) == 2
    assert "run.dir: " in capsys.readouterr().err.splitlines()[-1]
