"""What is refused before the first step."""

import shutil
from collections import namedtuple

import pytest
from support import train_here

from model.errors import RunFailed, UserError

Usage = namedtuple("Usage", "total used free")


@pytest.mark.fault("F12")
def test_a_disk_too_small_for_the_checkpoints(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 300_000))
    with pytest.raises(
        UserError, match=r"has 0\.3 MB free, checkpoint\.keep = 3 checkpoints of \d\S* MB need \d\S* MB;"
    ):
        train_here(tiny, "--train.max_steps=1")
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_ranks_with_different_supports(tiny, monkeypatch):
    monkeypatch.setattr("pretrain.loop.run.gather_outcomes", lambda world, checksum: [checksum, checksum + 1])
    with pytest.raises(RunFailed, match="sparse supports differ between processes"):
        train_here(tiny, "--train.max_steps=1")
