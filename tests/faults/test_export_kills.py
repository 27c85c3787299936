"""Exports that are killed at every change of the disk: what has the name is whole, and the same command works."""

import importlib.util

import pytest
from kill_each import killed_at_every_change
from support import train_here, write_tiny

from pretrain.cli import main


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A run with checkpoints of the steps 1 and 2."""
    folder = tmp_path_factory.mktemp("exported")
    assert train_here(write_tiny(folder, corpus), "--train.max_steps=2", "--checkpoint.every=1") == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def without_transformers(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.fault("F28")
def test_kills_of_a_first_export(run, tmp_path):
    (tmp_path / "before").mkdir()
    command = ["export", str(run), "--no-check", "--out"]
    assert main([*command, str(tmp_path / "whole" / "hf")]) == 0
    expected = contents(tmp_path / "whole" / "hf")
    killed = killed_at_every_change(tmp_path / "before", tmp_path / "killed", *command, "{}/hf")
    assert not any((folder / "hf").exists() for folder in killed)
    for folder in [killed[0], killed[len(killed) // 2], killed[-1]]:
        assert main([*command, str(folder / "hf")]) == 0
        assert contents(folder / "hf") == expected
        assert [path.name for path in folder.iterdir()] == ["hf"]


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """A folder with the export `hf` of step 1."""
    folder = tmp_path_factory.mktemp("before")
    assert main(["export", str(run / "checkpoints" / "step-00000001"), "--out", str(folder / "hf"), "--no-check"]) == 0
    return folder


@pytest.mark.fault("F39")
def test_kills_of_an_export_over_another(run, exported, tmp_path):
    """The old or the new one has the name, or for a moment neither, when the old one waits beside it."""
    command = ["export", str(run), "--no-check", "--overwrite", "--out"]
    old = contents(exported / "hf")
    assert main([*command, str(tmp_path / "whole" / "hf")]) == 0
    new = contents(tmp_path / "whole" / "hf")
    found = set()
    for folder in killed_at_every_change(exported, tmp_path / "killed", *command, "{}/hf"):
        names = tuple(sorted(path.name for path in folder.iterdir()))
        waits = "hf" not in names
        there = contents(folder / ("hf.replaced" if waits else "hf"))
        assert there in ([old] if waits else [old, new])
        if (names, there == new) not in found:  # one of each kind
            found.add((names, there == new))
            if waits:
                assert main(["export", str(run), "--out", str(folder / "hf")]) == 2  # there is one already: the old one
                assert contents(folder / "hf") == old
            assert main([*command, str(folder / "hf")]) == 0
            assert contents(folder / "hf") == new
            assert [path.name for path in folder.iterdir()] == ["hf"]
    assert {(("hf.partial", "hf.replaced"), False), (("hf", "hf.replaced"), True)} <= found


@pytest.mark.fault("F39")
def test_kills_of_an_export_whose_check_fails(run, exported, tmp_path):
    """The old export stays what it is; the new one is kept with the reason in it, or is gone with the next export."""
    command, old = ["export", str(run), "--overwrite", "--out"], contents(exported / "hf")
    for folder in killed_at_every_change(exported, tmp_path / "killed", *command, "{}/hf", failing=True):
        names = sorted(path.name for path in folder.iterdir())
        assert contents(folder / "hf") == old
        assert names[1:] in ([], ["hf.partial"], ["hf.failed-check"])
        if "hf.failed-check" in names:
            assert "is not the model" in (folder / "hf.failed-check" / "FAILED_CHECK.txt").read_text()
    assert "is not the model" in (folder / "hf.partial" / "FAILED_CHECK.txt").read_text()
    assert main([*command, str(folder / "hf"), "--no-check"]) == 0
    assert [path.name for path in folder.iterdir()] == ["hf"]
    assert "FAILED_CHECK.txt" not in contents(folder / "hf")
