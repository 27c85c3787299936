"""train.expandable_segments reaches PyTorch before the first tensor on a GPU, and leaves the user's settings alone."""

import os
import subprocess
import sys

import pytest
import torch
from support import ROOT, logged, train_here

from pretrain.cli import main
from pretrain.machine import memory

NEW, OLD = memory.ALLOCATOR_VARIABLES


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {NEW: "expandable_segments:True"}),
        ({NEW: ""}, {NEW: "expandable_segments:True"}),
        ({NEW: "max_split_size_mb:64"}, {NEW: "max_split_size_mb:64,expandable_segments:True"}),
        ({OLD: "max_split_size_mb:64"}, {OLD: "max_split_size_mb:64,expandable_segments:True"}),
        (
            {OLD: "max_split_size_mb:64", NEW: "max_split_size_mb:32"},
            {
                OLD: "max_split_size_mb:64,expandable_segments:True",
                NEW: "max_split_size_mb:32,expandable_segments:True",
            },
        ),
        ({OLD: "expandable_segments:False"}, {OLD: "expandable_segments:False"}),
        (
            {NEW: "max_split_size_mb:64,expandable_segments:True"},
            {NEW: "max_split_size_mb:64,expandable_segments:True"},
        ),
    ],
)
def test_the_users_settings_stay(monkeypatch, before, after):
    environment = dict(before)
    monkeypatch.setattr(os, "environ", environment)
    memory.expand_segments()
    assert environment == after


@pytest.mark.skipif(not hasattr(torch._C, "_accelerator_getAllocatorSettings"), reason="this torch does not tell")
def test_pytorch_takes_it_after_its_import():
    code = "import torch; from pretrain.machine.memory import expand_segments as go; go(); "
    code += "print(torch._C._accelerator_getAllocatorSettings())"
    env = {key: value for key, value in os.environ.items() if key not in memory.ALLOCATOR_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "expandable_segments:True"


@pytest.mark.parametrize("key", ["true", "false"])
def test_train_sets_it_before_it_starts(tiny, monkeypatch, key):
    seen = []
    monkeypatch.setattr("pretrain.machine.memory.expand_segments", lambda: seen.append("expanded"))
    monkeypatch.setattr("pretrain.machine.distributed.start", lambda: seen.append("started") or pytest.fail("too far"))
    with pytest.raises(pytest.fail.Exception):
        main(["train", str(tiny), f"--train.expandable_segments={key}"])
    assert seen == (["expanded"] if key == "true" else []) + ["started"]


def test_a_resume_may_change_it(tiny, tmp_path):
    train_here(tiny, "--train.max_steps=1")
    train_here(tiny, "--train.max_steps=2", "--train.expandable_segments=true")
    assert len(logged(tmp_path / "run")) == 2
