"""A plan with train.offload_activations: bytes leave the GPU, and are counted in host memory as pinned there."""

from pathlib import Path

import pytest
import torch

from model.errors import UserError
from pretrain.cli import main
from pretrain.config import load_config
from pretrain.config.schema import Config
from pretrain.machine.distributed import World
from pretrain.memory_plan import run, transfers
from pretrain.memory_plan.cards import fits
from pretrain.memory_plan.levers import describe, larger_micro_batch, proposals
from pretrain.memory_plan.memory import plan_memory
from pretrain.plan import plan

ROOT = Path(__file__).parents[3]
PATH = str(ROOT / "configs" / "llama_60m_dense.toml")
THERE = "--train.offload_activations=true"
MIB = 2**20


def planned(*overrides: str) -> Config:
    """60M parameters: 8 layers of width 512, micro-batches of 32 x 256 tokens, so that an input takes 8 MiB in bf16."""
    kind = ["--train.dtype=bf16", "--train.checkpoint_every_layers=1", "--train.micro_batch_size=32"]
    return load_config(PATH, [*kind, *overrides])


@pytest.mark.parametrize("stage", [0, 2])
def test_inputs_move_to_the_host(stage: int) -> None:
    kind = f"--parallel.zero_stage={stage}"
    without, there = plan_memory(planned(kind)), plan_memory(planned(kind, THERE))
    assert without.host == 0
    assert there.host == (2 * 8 - 1) * 8 * MIB
    forward, backward = ({p: m.total for p, m in plan.phases.items()} for plan in (without, there))
    for phase in ("forward", "backward"):
        assert backward[phase] < forward[phase] - 5 * 8 * MIB
    assert backward["update"] == forward["update"]


@pytest.mark.parametrize(("every", "inputs"), [(2, 7), (3, 5), (5, 3), (9, 1)])
def test_only_those_of_recomputed_blocks(every: int, inputs: int) -> None:
    config = planned(f"--train.checkpoint_every_layers={every}", THERE)
    assert plan_memory(config).host == inputs * 8 * MIB


def test_page_locked_memory_is_rounded_up() -> None:
    """An input of 24 sequences takes 6 MiB, for which there are 8."""
    config = planned("--train.micro_batch_size=24", "--train.global_batch_size=48", THERE)
    assert plan_memory(config).host == 15 * 8 * MIB


def test_on_a_cpu_they_are_memory_of_the_process() -> None:
    without, there = (plan_memory(planned(*more), cuda=False) for more in ([], [THERE]))
    assert there.host == 0
    assert there.total > without.total


def test_it_is_proposed_before_a_smaller_micro_batch() -> None:
    config = planned()
    total = plan_memory(planned(THERE)).total
    card = int((total + 8 * MIB) / 0.95) + 2**30
    assert not fits(config, 1, card)
    change = proposals(config, 1, card)[0]
    assert describe(change) == THERE
    assert fits(planned(THERE), 1, card)


def test_it_is_proposed_with_recomputation_where_that_is_not_enough() -> None:
    kind = ["--train.checkpoint_every_layers=0", "--train.micro_batch_size=1", "--train.global_batch_size=1"]
    kind += ["--train.seq_len=1023", "--model.max_seq_len=1023"]  # nothing else to make smaller
    once, moved = (planned(*kind, "--train.checkpoint_every_layers=1", *more) for more in ([], [THERE]))
    card = int((plan_memory(once).total + plan_memory(moved).total) / 2 / 0.98) + 2**30
    assert not fits(once, 1, card)
    changes = proposals(planned(*kind, "--train.expandable_segments=true"), 1, card)
    assert {"train.checkpoint_every_layers": 1, "train.offload_activations": True} in changes


def test_a_larger_micro_batch_is_proposed_where_there_is_room(capsys: pytest.CaptureFixture[str]) -> None:
    def card(*overrides: str) -> int:
        return int(plan_memory(planned(*overrides)).total / 0.95) + 2**30 + MIB

    double, four = "--train.micro_batch_size=64", "--train.micro_batch_size=128"
    assert larger_micro_batch(planned(THERE), 1, card(THERE)) == {}
    assert larger_micro_batch(planned(), 1, card(double)) == {"train.micro_batch_size": 64}
    moved = {"train.micro_batch_size": 128, "train.offload_activations": True}
    assert card(four, THERE) < card(four)
    assert larger_micro_batch(planned(), 1, card(four, THERE)) == moved
    assert larger_micro_batch(planned("--train.global_batch_size=32"), 1, card(four)) == {}, "the update stays the same"
    assert larger_micro_batch(planned("--train.global_batch_size=128"), 2, card(four)) == {"train.micro_batch_size": 64}
    alone = ["--optimizer.name=adamw8bit", "--optimizer.update=per_layer", "--train.grad_clip=0.0"]
    assert larger_micro_batch(planned(*alone, "--train.global_batch_size=32"), 1, card(four)) == {}
    overrides = ["--train.dtype=bf16", "--train.checkpoint_every_layers=1", "--train.micro_batch_size=32"]
    assert main(["plan", PATH, *overrides, "--gpu-memory", f"{card(double) / 2**30:.3f}GiB"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("\n  and has room for --train.micro_batch_size=64: fewer micro-steps of more tokens\n")


def test_time_on_the_bus(capsys: pytest.CaptureFixture[str]) -> None:
    """15 inputs of 8 MiB go out and come back; attention computes 2 x 4 x 512 x 512 + 4 x 256 x 512 FLOPs per token."""
    assert plan(planned(), 1)["transfers"] == {}
    figures = plan(planned(THERE), 1, speed=66e12)["transfers"]
    assert (figures["inputs"], figures["bytes"]) == (15, 2 * 15 * 8 * MIB)
    assert figures["seconds"] == pytest.approx(2 * 15 * 8 * MIB / 12e9)
    part = 32 * 256 * (2 * 4 * 512 * 512 + 4 * 256 * 512)
    assert figures["seconds_of_part"] == pytest.approx(part / 66e12)
    assert not figures["covered"], "a width of 512 computes too little for each number"
    assert "covered" not in plan(planned(THERE), 1)["transfers"]
    said = list(transfers.describe_transfers(figures))
    assert "longer than the 0.3 ms that half a block computes meanwhile" in said[1]
    overrides = [
        "--train.checkpoint_every_layers=1",
        THERE,
        "--model.dim=4096",
        "--model.n_heads=32",
        "--model.ffn_dim=11008",
    ]
    assert main(["plan", PATH, *overrides, "--gpu-tflops", "165"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("PCIe", "  an input"))]
    assert "at 12 GB/s, assumed" in said[0]
    assert "hidden behind" in said[1]


def test_a_machine_without_the_memory_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = World(0, 1, torch.device("cuda", 0))
    monkeypatch.setattr(run, "gpu_bytes", lambda device: 80 * 2**30)
    config = planned(THERE)
    run.require_memory(config, gpu)
    monkeypatch.setattr(run, "host_bytes", lambda: 200 * MIB)
    run.require_memory(config, gpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(
        UserError, match=r"keeps 0\.2 GiB in host memory .* 0\.2: set train\.offload_activations = false"
    ):
        run.require_memory(config, gpu)
    run.require_memory(config.model_copy(update={"guard": config.guard.model_copy(update={"memory": False})}), gpu)
    run.require_memory(planned(), gpu)
