"""The host memory of saves in the background, as planned and as taken."""

import pytest
import torch
from support import train_here

from pretrain.cli import main
from pretrain.config import load_config
from pretrain.loop import run
from pretrain.machine.distributed import World
from pretrain.memory_plan.copies import copied_bytes, lacks_room, planned_copies

ENGINES = {
    "stage 1": ["--parallel.zero_stage=1", "--train.dtype=bf16"],
    "galore": ["--linear.name=dense", "--optimizer.name=galore_adamw", "--optimizer.rank=4"],
    "8-bit": ["--optimizer.name=adamw8bit"],
    "int8": ["--linear.name=dense", "--optimizer.name=q_galore", "--optimizer.rank=4", "--optimizer.weights=int8"],
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_plan_is_what_a_run_copies(tiny, monkeypatch, engine):
    found = []

    def counted(tensors, world):
        found.append(copied_bytes(tensors, world))
        return found[-1]

    monkeypatch.setattr(run, "copied_bytes", counted)
    options = [*ENGINES[engine], "--train.max_steps=1"]
    train_here(tiny, *options)
    assert found == [planned_copies(load_config(tiny, options), 1)]


def test_files_are_shared_by_ranks(monkeypatch):
    monkeypatch.setattr("pretrain.checkpoint.save.SHARD_BYTES", 100)
    tensors = [("", size, lambda: torch.empty(0)) for size in (40, 40, 40, 200, 64)]  # files: 0 0, 1, 2, 3
    assert [copied_bytes(tensors, World(rank, 2, torch.device("cpu"))) for rank in (0, 1)] == [128 + 256, 64 + 64]


def test_plan_says_what_a_copy_takes(tiny, capsys):
    for background in (True, False):
        assert main(["plan", str(tiny), f"--checkpoint.background={str(background).lower()}"]) == 0
        assert ("checkpoint copy " in capsys.readouterr().out) == background


def test_the_ranks_of_one_machine_share_its_memory(tiny, monkeypatch):
    """Two machines of two processes: each counts its own ranks' copies beside its own ranks' tensors."""
    config = load_config(tiny)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("pretrain.memory_plan.copies.host_bytes", lambda: 10 * 2**20)
    copies = [2**20, 2**20, 2**20, 9 * 2**20]
    gpu = [World(rank, 4, torch.device("cuda", 0)) for rank in range(4)]
    assert [bool(lacks_room(config, world, {}, copies)) for world in gpu] == [False, False, True, True]
    cpu = World(0, 4, torch.device("cpu"))
    assert "this machine has 10 MiB" in str(lacks_room(config, cpu, {}, [8 * 2**20, 0, 0, 0]))


def test_a_step_that_cannot_be_planned_is_said(monkeypatch):
    def broken(*_, **__):
        raise ValueError("broken")

    monkeypatch.setattr("pretrain.memory_plan.copies.plan_stage", broken)
    sentence = lacks_room(load_config(None), World(0, 1, torch.device("cpu")), {}, [1])
    assert sentence == "whether a copy of one has room is not known (ValueError: broken)"
