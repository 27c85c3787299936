"""A run that cannot fit the GPU it starts on is refused, with the stage that is too large."""

from types import SimpleNamespace

import pytest
import torch

from model.errors import UserError
from pretrain.config import load_config
from pretrain.machine.distributed import World
from pretrain.memory_plan.memory import plan_stage
from pretrain.memory_plan.run import require_memory

GPU = World(0, 1, torch.device("cuda", 0))


@pytest.fixture
def grown(monkeypatch):
    """A run that grows, and a GPU whose memory lies between what its two stages need."""
    config = load_config("configs/llama_350m_gstack.toml", ["--train.dtype=bf16"])
    small, large = (plan_stage(stage.config).total for stage in config.stages)
    assert small < large
    card = SimpleNamespace(total_memory=(small + large) // 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    return config


def test_the_stage_that_is_too_large_is_named_at_the_start(grown):
    with pytest.raises(UserError, match=r"the model of 24 layers needs .* GiB of tensors .* guard\.memory = false"):
        require_memory(grown, GPU)


def test_it_can_be_forced(grown):
    require_memory(grown.model_copy(update={"guard": grown.guard.model_copy(update={"memory": False})}), GPU)


def test_what_fits_and_what_runs_on_a_cpu_goes_on(grown, monkeypatch):
    require_memory(grown, World(0, 1, torch.device("cpu")))
    large = SimpleNamespace(total_memory=10**12)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: large)
    require_memory(grown, GPU)
