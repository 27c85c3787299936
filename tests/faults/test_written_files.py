"""What all commands write lies where it was asked for and has the rights that the user's umask gives."""

import importlib.util
import os
import stat
import sys
from pathlib import Path

import pytest
from support import train_here, write_tiny

from pretrain.cli import main

CACHES = ("matplotlib", "torchinductor", ".triton", "__pycache__")
"""What libraries keep for themselves, where they choose."""

_written: list[Path] | None = None
"""Files and folders that this process makes or changes, while somebody asks."""


def _audit(event: str, arguments: tuple) -> None:
    if _written is None:
        return
    if event in ("os.mkdir", "os.rename", "os.link", "os.symlink"):
        path = arguments[event != "os.mkdir"]
    elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = arguments[0]
    else:
        return
    if isinstance(path, str | os.PathLike):
        _written.append(Path(path).absolute())


sys.addaudithook(_audit)  # for good: there is no way to take one back


@pytest.fixture
def written(monkeypatch):
    paths: list[Path] = []
    monkeypatch.setattr(sys.modules[__name__], "_written", paths)
    return paths


def test_everything_lies_where_it_was_asked_for_with_the_rights_of_the_umask(corpus, tmp_path, monkeypatch, written):
    """From text to an exported model, in a folder that is not the working one."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    monkeypatch.chdir(tmp_path)
    config = write_tiny(tmp_path, tmp_path / "data")
    written.clear()
    umask = os.umask(0o027)
    try:
        prepare = ["prepare", "--text", str(corpus.parent / "text"), "--out", "data", "--vocab-size", "320"]
        assert main(prepare) == 0
        assert train_here(config, "--train.max_steps=2", "--checkpoint.every=1", "--metrics.tensorboard=true") == 0
        assert main(["export", "run", "--out", "hf"]) == 0
        assert main(["report", "run", "--out", "report"]) == 0
        for command in ("eval", "sample"):
            assert main([command, "run"]) == 0
    finally:
        os.umask(umask)
    asked = tuple(str(tmp_path / name) for name in ("data", "run", "hf", "report"))
    elsewhere = {str(path) for path in written if not str(path).startswith(asked)} - {os.devnull, str(tmp_path)}
    assert not {path for path in elsewhere if not any(word in path for word in CACHES)}
    found = {path for name in asked for path in [Path(name), *Path(name).rglob("*")]}
    assert len(found) > 30
    wrong = {
        str(path): oct(mode)
        for path in found
        if (mode := stat.S_IMODE(path.stat().st_mode)) != (0o750 if path.is_dir() else 0o640)
    }
    assert not wrong
