"""The plan against the real model, loss, hooks and optimizer on fake tensors of full size, on a CPU in bf16."""

from pathlib import Path

import pytest

from kernels.sparse_low_rank_linear.choice import Choice
from model.build import shape_of_model
from pretrain.config import load_config
from pretrain.config.schema import Config
from pretrain.engine.kernel_choices import choosing_linears
from pretrain.memory_plan.memory import MemoryPlan, plan_memory
from tests.fake_step import PERSISTENT, FakeStep, fake_step

CONFIGS = Path(__file__).parents[3] / "configs"

SMALLER = ("--train.micro_batch_size=32", "--train.global_batch_size=64")
"""A loss of fewer chunks, which are what takes the time of a fake step."""

TOTAL, ITEM, SMALL = 0.03, 0.05, 100e6
"""Tolerances of a phase's peak and of each item of at least SMALL bytes."""


def load(name: str, *overrides: str) -> Config:
    return load_config(str(CONFIGS / f"{name}.toml"), ["--parallel.zero_stage=0", *overrides])


def compare(plan: MemoryPlan, step: FakeStep) -> None:
    assert plan.total == pytest.approx(step.total, rel=TOTAL)
    for phase, moment in plan.phases.items():
        total, items = step.peaks[phase]
        assert moment.total == pytest.approx(total, rel=TOTAL), phase
        planned = {item: moment.items.get(item, 0) for item in PERSISTENT}
        planned["working"] = moment.total - sum(planned.values())
        for item, size in planned.items():
            if max(size, items.get(item, 0)) >= SMALL:
                assert size == pytest.approx(items.get(item, 0), rel=ITEM), f"{item} in {phase}"


@pytest.mark.parametrize("checkpoint", [0, 1, 2])
@pytest.mark.parametrize("weights", ["fp32_master", "bf16"])
def test_dense(checkpoint: int, weights: str) -> None:
    """Two micro-steps: the second one finds gradients."""
    config = load(
        "llama_60m_dense",
        f"--train.checkpoint_every_layers={checkpoint}",
        f"--optimizer.weights={weights}",
        "--model.n_layers=3",
        *SMALLER,
    )
    plan, step = plan_memory(config, cuda=False), fake_step(config)
    for phase, moment in plan.phases.items():
        assert moment.total == pytest.approx(step.peaks[phase][0], rel=1e-3)
    compare(plan, step)


def test_grouped_attention_and_a_tied_head() -> None:
    overrides = ["--model.n_kv_heads=2", "--model.tie_embeddings=true", "--model.n_layers=2", *SMALLER]
    config = load("llama_60m_dense", *overrides)
    compare(plan_memory(config, cuda=False), fake_step(config))


def test_low_rank() -> None:
    config = load("llama_60m_dense", "--linear.name=low_rank", "--linear.rank=128", *SMALLER, "--model.n_layers=3")
    compare(plan_memory(config, cuda=False), fake_step(config))


@pytest.mark.parametrize(
    "choice", [Choice(), Choice(keep="layer"), Choice(keep="step"), Choice(keep="step", accumulate=True)], ids=str
)
@pytest.mark.parametrize("checkpoint", [0, 1])
def test_sparse_low_rank(choice: Choice, checkpoint: int) -> None:
    config = load(
        "llama_1b_sltrain",
        "--model.n_layers=2",
        "--train.micro_batch_size=8",
        "--train.global_batch_size=16",
        f"--train.checkpoint_every_layers={checkpoint}",
    )
    linears = choosing_linears(shape_of_model(config.model, config.linear))
    record = {"shapes": {f"{linear.out_features}x{linear.in_features}": choice.to_json() for linear in linears}}
    compare(plan_memory(config, cuda=False, kernels=record), fake_step(config, choice=choice))


@pytest.mark.parametrize("method", ["galore", "fira", "apollo", "apollo_mini", "online_subspace"])
def test_matrix_optimizers(method: str) -> None:
    """A loss and activations so small that state, gradients and the step's own buffers are what is compared."""
    small = ("--train.micro_batch_size=1", "--train.global_batch_size=2", "--train.seq_len=64")
    config = load(f"llama_350m_{method}", *small, "--model.n_layers=4", "--model.vocab_size=4096")
    compare(plan_memory(config, cuda=False), fake_step(config))
