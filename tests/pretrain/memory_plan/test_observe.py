"""What the planner sees: whatever the model and the optimizer are made of, and nobody sees the planner."""

import gc
import threading
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
import triton.runtime.jit
from torch import Tensor, nn

import kernels.liger as liger
import model.linear.int8 as int8
from model.config import ModelConfig
from model.errors import UserError
from model.linear import LINEARS
from model.linear.dense import Dense
from model.rope import rotary_tables
from pretrain.config import load_config
from pretrain.config.schema import Config
from pretrain.memory_plan import memory
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.memory import at_least, plan_memory
from pretrain.memory_plan.trace import tracing
from pretrain.optim.rules import PRESETS
from pretrain.optim.rules.galore import GaLore

CONFIGS = Path(__file__).parents[3] / "configs"

SMALL = ("--train.micro_batch_size=2", "--train.global_batch_size=4", "--train.seq_len=64", "--model.n_layers=2")

RECIPES = {
    "16gb_sltrain": 15.0,
    "12gb_apollo_mini": 10.4,
    "scale": 9.0,
    "16gb_q_galore": 16.0,
    "24gb_sltrain": 24.0,
    "24gb_galore": 24.0,
    "24gb_q_galore": 24.0,
}
"""The most that each shipped recipe for one GPU may take, in GB (1e9 bytes)."""


def load(name: str, *overrides: str) -> Config:
    return load_config(str(CONFIGS / f"{name}.toml"), ["--parallel.zero_stage=0", *overrides])


class Doubled(Dense):
    """y = x (W + V)^T: a linear that the planner has never heard of."""

    class Config(Dense.Config):
        name: Literal["doubled"] = "doubled"  # type: ignore[assignment]

    def __init__(self, config: Any, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(config, in_features, out_features, name, init_std)
        self.V = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.weight + self.V).to(x.dtype))


def test_a_new_linear_needs_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the parameters with their state, and W + V beside them while it is multiplied."""
    monkeypatch.setitem(LINEARS, "doubled", Doubled)
    config = load("llama_60m_dense", *SMALL)
    toy = config.model_copy(update={"linear": Doubled.Config()})
    dense, doubled = plan_memory(config).phases["update"].items, plan_memory(toy).phases["update"].items
    matrices = 2 * (4 * 512 * 512 + 3 * 512 * 1376) * 4
    assert doubled["weights"] - dense["weights"] == matrices
    assert doubled["gradients"] - dense["gradients"] == matrices
    assert doubled["moments"] - dense["moments"] == 2 * matrices + 4 * 14
    saved = plan_memory(toy).phases["forward"].total - plan_memory(config).phases["forward"].total
    assert saved > 3 * matrices


class Greedy(GaLore):
    """GaLore with a copy of each matrix in its state, and another while it steps."""

    def init_state(self, matrix: Any, device: torch.device) -> Any:
        return super().init_state(matrix, device) | {"copy": torch.zeros(matrix.m, matrix.n, device=device)}

    def direct(self, matrix: Any, state: Any, P: Any, gradient: Tensor, step: Any) -> Any:
        state["copy"].add_(torch.ones(16 * matrix.m, matrix.n, device=gradient.device)[: matrix.m])
        kept = {name: tensor for name, tensor in state.items() if name != "copy"}
        return super().direct(matrix, kept, P, gradient, step)


def test_a_new_rule_needs_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("llama_60m_galore", *SMALL)
    galore = plan_memory(config).phases["update"]
    monkeypatch.setitem(PRESETS, "galore_adamw", Greedy)
    memory._observed.cache_clear()
    greedy = plan_memory(config).phases["update"]
    memory._observed.cache_clear()
    matrices = 2 * (4 * 512 * 512 + 3 * 512 * 1376) * 4
    assert greedy.items["moments"] - galore.items["moments"] == matrices
    assert greedy.items["temporaries"] > 16 * 512 * 1376 * 4


@pytest.mark.parametrize("name", PRESETS)
def test_every_precision_of_moments(name: str) -> None:
    """No rule may take the device's random numbers: there is no generator where there is no data."""
    shape = ("--model.dim=128", "--model.n_heads=2", "--model.ffn_dim=256", "--model.vocab_size=256")
    moments = {}
    for precision in ("fp32", "bf16", "8bit"):
        optimizer = (f"--optimizer.name={name}", f"--optimizer.moments={precision}")
        try:
            config = load("llama_60m_dense", *SMALL, *shape, *optimizer)
        except UserError:
            continue  # such moments are not for this rule
        moments[precision] = plan_memory(config).phases["update"].items.get("moments", 0)
    assert list(moments.values()) == sorted(moments.values(), reverse=True)
    assert next(iter(moments.values())) > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(recipe: str) -> None:
    assert plan_memory(load(f"llama_7b_{recipe}")).total <= RECIPES[recipe] * 1e9


@pytest.mark.parametrize("cuda", [False, True])
def test_nobody_notices(cuda: bool) -> None:
    """Beside an observation, another thread computes with data and launches kernels; after it, all is as before."""
    attention, launch = F.scaled_dot_product_attention, triton.runtime.jit.JITFunction.run
    seen: list[Any] = []

    def other() -> None:
        x = torch.ones(2, requires_grad=True)
        (x * 3).sum().backward()
        seen.extend([x.grad.tolist(), x.is_cuda, torch.empty(1).device.type])

    with tracing(Ledger(), cuda):
        assert torch.empty(1).device.type == "meta"
        assert torch.empty(1).is_cuda is cuda
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [[3.0, 3.0], False, "cpu"]
    assert torch.ones(1).tolist() == [1.0]
    assert not torch.empty(1).is_cuda
    assert F.scaled_dot_product_attention is attention
    assert triton.runtime.jit.JITFunction.run is launch
    assert rotary_tables(ModelConfig(), 2, torch.device("cpu"), torch.float32).device.type == "cpu"


def test_a_plan_leaves_nothing_behind() -> None:
    """Neither models nor what they share: the second plan of a process is the first."""
    config = load("llama_7b_12gb_apollo_mini", "--model.n_layers=1", "--train.seq_len=64")
    gc.collect()
    before = sum(issubclass(type(thing), nn.Module) for thing in gc.get_objects())
    gc.disable()
    try:
        first = plan_memory(config).total
        assert not any(device.type == "meta" for _, device in int8._scratch)
    finally:
        gc.enable()
    memory._observed.cache_clear()
    assert plan_memory(config).total == first
    memory._shape_of.cache_clear()
    gc.collect()
    assert sum(issubclass(type(thing), nn.Module) for thing in gc.get_objects()) <= before


@pytest.mark.parametrize(
    "name",
    ["llama_60m_dense", "llama_60m_sltrain", "llama_350m_fira", "llama_7b_16gb_q_galore", "llama_7b_24gb_sltrain"],
)
def test_the_least_of_a_plan_is_just_below_it(name: str) -> None:
    config = load(name)
    total = plan_memory(config).total
    assert 0.85 * total <= at_least(config, 1, 0) <= total


def test_a_gpus_plan_needs_no_liger_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("llama_60m_dense", *SMALL)
    memory._observed.cache_clear()
    there = plan_memory(config).total
    monkeypatch.setattr(liger, "_installed", lambda: False)
    memory._observed.cache_clear()
    assert plan_memory(config).total == there < plan_memory(config, cuda=False).total


def test_host_memory_is_not_the_devices() -> None:
    small = ("--train.micro_batch_size=1", "--train.global_batch_size=2", "--model.n_layers=2", "--train.seq_len=64")
    small += ("--train.offload_activations=false",)
    there = load("llama_7b_24gb_galore", *small, "--optimizer.update=step", "--optimizer.accumulators=device")
    away = load("llama_7b_24gb_galore", *small, "--optimizer.update=step", "--optimizer.accumulators=host")
    sums = plan_memory(there).phases["update"].items["accumulators"]
    assert plan_memory(there).host == 0
    assert "accumulators" not in plan_memory(away).phases["update"].items
    assert sums <= plan_memory(away).host <= 2 * sums
