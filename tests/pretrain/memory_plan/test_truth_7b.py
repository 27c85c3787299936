"""The plan against the real model, loss, hooks and optimizer at 7B on fake tensors that take a GPU's paths."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.sparse_low_rank_linear.choice import Choice
from pretrain.config.schema import Config
from pretrain.memory_plan.memory import plan_memory
from tests.fake_step import fake_step
from tests.pretrain.memory_plan.test_truth import compare, load

pytest.importorskip("triton")
pytest.importorskip("liger_kernel")

BATCH = ("--train.micro_batch_size=8", "--train.global_batch_size=8", "--train.seq_len=256", "--train.grad_clip=0")

RECOMPUTED = "--train.checkpoint_every_layers=1"

PER_LAYER = "--optimizer.update=per_layer"

GALORE = (
    "--optimizer.name=galore_adamw",
    "--optimizer.weights=bf16_stochastic",
    "--optimizer.moments=8bit",
    "--optimizer.projection=bf16",
    "--optimizer.rank=1024",
)

Q_GALORE = ("--optimizer.name=q_galore", "--optimizer.rank=1024")

APOLLO_MINI = ("--optimizer.name=apollo_mini", "--optimizer.weights=int8", "--optimizer.moments=8bit")

FIRA = ("--optimizer.name=fira", "--optimizer.weights=bf16_stochastic", "--optimizer.rank=1024")

slow = pytest.mark.slow


def dense(*overrides: str) -> Config:
    return load("llama_7b_dense", *BATCH, RECOMPUTED, *overrides)


RECIPES = {
    "16gb_sltrain": 15.0,
    "12gb_apollo_mini": 9.8,
    "16gb_q_galore": 16.0,
    "24gb_sltrain": 24.0,
    "24gb_galore": 24.0,
    "24gb_q_galore": 24.0,
}
"""The most that each shipped recipe may take, in GB (1e9 bytes)."""


@pytest.mark.parametrize(
    "recipe", [name if index < 2 else pytest.param(name, marks=slow) for index, name in enumerate(RECIPES)]
)
def test_recipes(recipe: str) -> None:
    config = load(f"llama_7b_{recipe}")
    step = fake_step(config, choice=Choice(), cuda=True)
    compare(plan_memory(config), step)
    assert step.total <= RECIPES[recipe] * 1e9


@pytest.mark.slow
@pytest.mark.parametrize(("method", "most"), [(GALORE, 20.9), (Q_GALORE, 13.1)], ids=["galore", "q_galore"])
def test_per_layer(method: tuple[str, ...], most: float) -> None:
    config = dense(*method, PER_LAYER)
    step = fake_step(config, cuda=True)
    compare(plan_memory(config), step)
    assert step.total <= most * 1e9


@pytest.mark.slow
def test_sltrain_without_recomputation() -> None:
    config = load("llama_7b_sltrain", *BATCH, "--optimizer.weights=bf16")
    compare(plan_memory(config), fake_step(config, choice=Choice(), cuda=True))


@pytest.mark.parametrize("update", ["per_layer", "step"])
@pytest.mark.parametrize("method", [GALORE, Q_GALORE, APOLLO_MINI, FIRA], ids=lambda method: method[0].split("=")[1])
def test_steps_of_7b_matrices(method: tuple[str, ...], update: str) -> None:
    """A head so small, and so few tokens, that the steps of the matrices are the worst moment."""
    config = few_tokens(*method, f"--optimizer.update={update}")
    compare(plan_memory(config), fake_step(config, cuda=True))


@pytest.mark.parametrize("method", [GALORE, Q_GALORE], ids=lambda method: method[0].split("=")[1])
def test_accumulators_in_host_memory(method: tuple[str, ...]) -> None:
    config = few_tokens(*method, "--optimizer.update=step", "--optimizer.accumulators=host")
    compare(plan_memory(config), fake_step(config, cuda=True))


def few_tokens(*overrides: str) -> Config:
    """Two micro-steps, where the update allows it."""
    batch = 1 if "--optimizer.update=per_layer" in overrides else 2
    small = ("--train.micro_batch_size=1", f"--train.global_batch_size={batch}", "--train.seq_len=64")
    return dense(*small, "--model.n_layers=2", "--model.vocab_size=2048", *overrides)


def test_patches_end_with_the_step() -> None:
    config = few_tokens(*APOLLO_MINI, PER_LAYER, "--model.n_layers=1")
    attention = torch.nn.functional.scaled_dot_product_attention
    fake_step(config, cuda=True)
    with FakeTensorMode():
        assert not torch.empty(1).is_cuda
    assert torch.nn.functional.scaled_dot_product_attention is attention
