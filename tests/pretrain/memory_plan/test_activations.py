"""A plan with train.offload_activations: bytes leave the GPU, and are counted in host memory as pinned there."""

from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.config.schema import Config
from pretrain.memory_plan.memory import plan_memory

ROOT = Path(__file__).parents[3]
MIB = 2**20


def planned(*overrides: str) -> Config:
    """60M parameters: 8 layers of width 512, micro-batches of 32 x 256 tokens, so that an input takes 8 MiB in bf16."""
    kind = ["--train.dtype=bf16", "--train.checkpoint_every_layers=1", "--train.micro_batch_size=32"]
    return load_config(ROOT / "configs" / "llama_60m_dense.toml", [*kind, *overrides])


@pytest.mark.parametrize("stage", [0, 2])
def test_inputs_move_to_the_host(stage: int) -> None:
    kind = f"--parallel.zero_stage={stage}"
    without, there = plan_memory(planned(kind)), plan_memory(planned(kind, "--train.offload_activations=true"))
    assert without.host == 0
    assert there.host == (2 * 8 - 1) * 8 * MIB
    forward, backward = ({p: m.total for p, m in plan.phases.items()} for plan in (without, there))
    for phase in ("forward", "backward"):
        assert backward[phase] < forward[phase] - 5 * 8 * MIB
    assert backward["update"] == forward["update"]


@pytest.mark.parametrize(("every", "inputs"), [(2, 7), (3, 5), (5, 3), (9, 1)])
def test_only_those_of_recomputed_blocks(every: int, inputs: int) -> None:
    config = planned(f"--train.checkpoint_every_layers={every}", "--train.offload_activations=true")
    assert plan_memory(config).host == inputs * 8 * MIB


def test_page_locked_memory_is_rounded_up() -> None:
    """An input of 24 sequences takes 6 MiB, for which there are 8."""
    config = planned("--train.micro_batch_size=24", "--train.global_batch_size=48", "--train.offload_activations=true")
    assert plan_memory(config).host == 15 * 8 * MIB


def test_on_a_cpu_they_are_memory_of_the_process() -> None:
    without, there = (plan_memory(planned(*more), cuda=False) for more in ([], ["--train.offload_activations=true"]))
    assert there.host == 0
    assert there.total > without.total
