"""The 7B recipes' parts of the check on a GPU: one in miniature on a CPU, and what is skipped, and why."""

import json
import shutil
import time
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from model.errors import UserError
from pretrain.bench import gpu_7b, gpu_check
from pretrain.bench.gpu_check import main
from pretrain.bench.part import Check, Done, Failed, Part, Skipped
from pretrain.machine import memory
from pretrain.machine.distributed import World
from pretrain.machine.hardware import free_bytes
from pretrain.memory_plan.run import require_memory

SMALL = ["--model.dim=32", "--model.n_layers=1", "--model.n_heads=2", "--model.ffn_dim=53", "--model.vocab_size=320"]
SMALL += ["--train.seq_len=16", "--eval.tokens=64", "--train.micro_batch_size=2", "--train.global_batch_size=2"]
NAME = f"{gpu_7b.NAME}: 12gb_apollo_mini"
GPU = torch.device("cuda", 0)
GIB = 2**30


@pytest.fixture
def check(corpus, tmp_path) -> Check:
    (tmp_path / "work").mkdir()
    return Check(tmp_path / "work", device="cpu", small=SMALL, data=corpus)


def part() -> Part:
    return next(part for part in gpu_7b.parts() if part.name == NAME)


@pytest.mark.slow
def test_a_recipe_passes_on_a_cpu(check):
    found = part().run(check)
    assert (found["card_gib"], found["steps"], len(found["losses"])) == (12, gpu_7b.STEPS, gpu_7b.STEPS)
    assert found["tokens_per_second"] > 0
    assert found["peak_resident_bytes"] > 0
    assert found["planned_on_card_bytes"] > 0
    assert found["peak_memory_bytes"] is found["plan_error"] is None, "a CPU counts no tensors: nothing to compare"
    assert not list(check.work.glob("llama_7b*")), "the checkpoints stay no longer than the part"


def test_every_recipe_is_a_part_with_its_card():
    names = {part.name for part in gpu_7b.parts()}
    assert names == {f"{gpu_7b.NAME}: {name}" for name in gpu_7b.recipes()}
    cards = {name: gpu_7b.card_gib(path) for name, path in gpu_7b.recipes().items()}
    assert cards["12gb_apollo_mini"] == 12
    assert cards["16gb_q_galore"] == 16


def trainings(monkeypatch, outputs: list[Done]) -> list[dict]:
    """Let `outputs` stand for the two trainings; what they were asked for."""
    asked = []

    def python(self, *arguments, limit, **environment):
        if "plan" in arguments:
            return Done(0, json.dumps({"memory_bytes": {"total": 1, "weights": 1}}), "")
        asked.append({"arguments": arguments, "limit": limit, **environment})
        return outputs.pop(0)

    monkeypatch.setattr(Check, "python", python)
    return asked


@pytest.mark.slow
def test_activations_in_host_memory_are_compared_with_those_on_the_gpu(check):
    part = next(part for part in gpu_7b.offload_parts() if part.name == "7B offload: 24gb_sltrain")
    assert not part.proof
    check.small = [*SMALL, "--train.global_batch_size=4", "--linear.rank=4", "--linear.density=0.1"]
    found = part.run(check)
    assert {name: len(found[name]["losses"]) for name in ("on", "off", "off_on_card")} == dict.fromkeys(
        ("on", "off", "off_on_card"), gpu_7b.OFFLOAD_STEPS
    )
    assert found["largest_loss_difference"] == 0
    assert found["on"]["tokens_per_second"] > 0
    assert found["off_on_card"]["changes"] == ["--train.offload_activations=false", "--train.micro_batch_size=2"]
    assert not list(check.work.glob("llama_7b*"))


@pytest.mark.slow
def test_products_are_compared_on_a_cpu(check):
    part = next(part for part in gpu_7b.products_parts() if part.name == "7B products: 24gb_sltrain")
    check.small = [*SMALL, "--linear.rank=4", "--linear.density=0.1"]
    found = part.run(check)
    assert list(found) == ["bf16", "int8", "int8 all"]
    assert found["bf16"]["largest_loss_difference"] == 0.0
    assert found["bf16"]["speedup"] == 1.0
    for way in ("int8", "int8 all"):
        assert 0 < found[way]["largest_loss_difference"] < gpu_7b.PRODUCTS_TOLERANCE
        assert found[way]["speedup"] > 0
    assert not list(check.work.glob("llama_7b*"))


def test_products_that_give_another_loss_fail(check, monkeypatch):
    def updates(check, path, name, overrides, cap, found):
        return {"tokens_per_second": 1.0, "losses": [5.0, 5.2 if name == "int8" else 5.0]}

    monkeypatch.setattr(gpu_7b, "_planned", lambda *arguments: {"memory_bytes": {}, "reserve": 1})
    monkeypatch.setattr(gpu_7b, "_some_updates", updates)
    with pytest.raises(Failed, match="products in int8 give another loss"):
        gpu_7b.products(gpu_7b.recipes()["24gb_sltrain"], check)


def test_without_offload_the_largest_micro_batch_that_fits_is_the_peer(check, monkeypatch):
    def planned(check, path, card, overrides):
        """A GiB for each sequence."""
        size = int(overrides[-1].rpartition("=")[2])
        return {"memory_bytes": {"total": size * GIB}, "reserve": 1}

    monkeypatch.setattr(gpu_7b, "_planned", planned)
    path = gpu_7b.recipes()["24gb_sltrain"]
    found = [gpu_7b._fitting(check, path, card, ["--train.micro_batch_size=64"]) for card in (65, 64, 20, 1)]
    assert found == [64, 32, 16, 1]


def test_a_card_that_only_holds_the_recipe_leaves_one_way_out(check, monkeypatch):
    room = iter([False])
    monkeypatch.setattr(gpu_7b, "_has_room", lambda *_: next(room))
    monkeypatch.setattr(gpu_7b, "_fitting", lambda *_: 2)
    monkeypatch.setattr(gpu_7b, "_figures", lambda run, card: {"losses": [1.0]})
    asked = trainings(monkeypatch, [Done(0, "", ""), Done(0, "", "")])
    assert set(gpu_7b.offload(gpu_7b.recipes()["24gb_sltrain"], check)) == {"on", "off_on_card"}
    assert [call["SPARLOW_GPU_MEMORY_CAP"] for call in asked] == ["24", "24"]


def test_the_cap_is_the_cards_and_the_halves_are_two_processes(check, monkeypatch):
    asked = trainings(monkeypatch, [Done(0, "", ""), Done(1, "", "CUDA out of memory")])
    with pytest.raises(Failed, match="training to step 20 ended with status 1") as raised:
        part().run(check)
    assert "out of memory" in raised.value.figures["output"]
    assert [call["SPARLOW_GPU_MEMORY_CAP"] for call in asked] == ["12", "12"]
    assert [call["arguments"][-1] for call in asked] == ["--train.max_steps=10", "--train.max_steps=20"]
    assert len({text for call in asked for text in call["arguments"] if text.startswith("--run.dir=")}) == 1


def test_a_second_half_that_begins_anew_fails(check, monkeypatch):
    trainings(monkeypatch, [Done(0, "", ""), Done(0, "no word of a checkpoint", "")])
    with pytest.raises(Failed, match="did not begin at the checkpoint"):
        part().run(check)


def test_a_loss_that_is_not_finite_fails(check, monkeypatch):
    trainings(monkeypatch, [Done(0, "", ""), Done(0, "resuming run at step 10 (1 tokens seen)", "")])
    monkeypatch.setattr(gpu_7b, "_figures", lambda run, card: {"losses": [1.0, float("nan")]})
    with pytest.raises(Failed, match="a loss is not finite"):
        part().run(check)


def test_no_time_no_disk_and_a_small_gpu_are_reasons_to_skip(check, monkeypatch):
    trainings(monkeypatch, [Done(None, "", "")])
    with pytest.raises(Skipped, match="time did not suffice to train to step 10"):
        part().run(check)
    monkeypatch.setattr(gpu_7b, "_planned", lambda *a: {"memory_bytes": {"weights": 3 * 10**9, "moments": 10**9}})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(7 * 10**9))
    with pytest.raises(Skipped, match="has 7 GB free and two checkpoints take 8 GB"):
        part().run(check)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(9 * 10**9))
    check.device = "cuda"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=8 * GIB))
    with pytest.raises(Skipped, match=r"this GPU has 8\.0 GiB, the recipe is for 12"):
        part().run(check)
    check.small, check.deadline = [], time.monotonic() + 200
    with pytest.raises(Skipped, match="s are left and it takes about 240"):
        part().run(check)


def test_parts_are_chosen_by_name_and_must_not_all_be_skipped(monkeypatch, tmp_path, capsys):
    ran, seconds = [], []

    def passes(check):
        ran.append("one")
        seconds.append(check.seconds_left)
        return {}

    def skips(check):
        raise Skipped("no")

    monkeypatch.setattr(gpu_check, "environment", lambda device: {"hardware": {"name": "none"}})
    monkeypatch.setattr(gpu_check, "PARTS", [Part("a: one", passes), Part("a: two", skips), Part("b", skips)])
    assert main([str(tmp_path), "--only", "a"]) == 0
    assert ran == ["one"]
    assert main([str(tmp_path), "--only", "a: two"]) == 1
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--minutes", "3"]) == 0
    assert seconds == pytest.approx([3600, 440, 180], abs=5)
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--only", "c"])
    assert "there are a: one, a: two, b" in capsys.readouterr().err


@pytest.fixture
def card(monkeypatch):
    """A GPU of 80 GiB that is to be used like one of 24; what the allocator was told."""
    told = []
    monkeypatch.setenv("SPARLOW_GPU_MEMORY_CAP", "24")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: told.append(given))
    return told


def test_a_cap_holds_the_allocator(card, monkeypatch):
    memory.hold_to_cap(torch.device("cpu"))
    assert card == []
    memory.hold_to_cap(GPU)
    assert card == [(0.3, GPU)]
    monkeypatch.setenv("SPARLOW_GPU_MEMORY_CAP", "100")
    memory.hold_to_cap(GPU)
    assert card[1:] == [(1.0, GPU)]
    monkeypatch.delenv("SPARLOW_GPU_MEMORY_CAP")
    memory.hold_to_cap(GPU)
    assert len(card) == 2


def test_a_cap_is_the_cards_size(card, monkeypatch):
    assert memory.gpu_bytes(GPU) == 24 * GIB
    for name, figure in {"mem_get_info": (70 * GIB, 80 * GIB), "memory_reserved": 9, "memory_allocated": 4}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, figure=figure: figure)
    assert free_bytes(GPU) == 24 * GIB - 4
    monkeypatch.setenv("SPARLOW_GPU_MEMORY_CAP", "100")
    assert memory.gpu_bytes(GPU) == 80 * GIB
    assert free_bytes(GPU) == 70 * GIB + 5


def test_a_run_larger_than_the_cap_is_refused(card):
    from pretrain.config import load_config

    config = load_config(gpu_7b.ROOT / "configs" / "llama_1b_dense.toml", ["--train.micro_batch_size=64"])
    with pytest.raises(UserError, match=r"this GPU has 24\.0"):
        require_memory(config, World(0, 1, GPU))


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "inf"])
def test_a_cap_that_is_no_size_is_one_sentence(monkeypatch, text):
    monkeypatch.setenv("SPARLOW_GPU_MEMORY_CAP", text)
    with pytest.raises(UserError, match=f"SPARLOW_GPU_MEMORY_CAP={text} is no size"):
        memory.gpu_cap()


def test_train_reads_the_cap(tiny, monkeypatch, capsys):
    from pretrain import cli

    monkeypatch.setenv("SPARLOW_GPU_MEMORY_CAP", "x")
    assert cli.main(["train", str(tiny), "--train.max_steps=1"]) == 2
    assert "SPARLOW_GPU_MEMORY_CAP=x is no size" in capsys.readouterr().err
