"""The peak of a run's memory in one process, and what it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from model.build import shape_of_model
from model.linear.int8 import Int8Linear
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.engine.kernel_choices import recorded
from pretrain.memory_plan.choices import choices
from pretrain.memory_plan.element import element_memory
from pretrain.memory_plan.ledger import Ledger, Moment, Phase
from pretrain.memory_plan.matrix import MatrixMemory
from pretrain.memory_plan.setting import Setting
from pretrain.memory_plan.sharded import ShardedMemory
from pretrain.memory_plan.update import Update
from pretrain.memory_plan.walk import Model
from pretrain.optim.config import MatrixConfig, OwnConfig


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of live tensors in the process that has most."""

    phases: dict[Phase, Moment]
    """The worst moment of each part of an optimizer step."""
    n_layers: int
    """Of the growth stage that takes most."""
    host: int = 0
    """Bytes of the process that are kept in the host's memory instead of a GPU's; not part of `total`."""
    kernels: dict[str, Any] = field(default_factory=dict)
    """The record of how the linears compute (pretrain.engine.kernel_choices), planned or given."""

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: self.phases[phase].total)

    @property
    def total(self) -> int:
        return self.phases[self.worst].total

    @property
    def items(self) -> dict[str, int]:
        """What is alive at the worst moment; adds up to `total`."""
        return self.phases[self.worst].items


def plan_memory(
    config: Config,
    world_size: int = 1,
    *,
    cuda: bool = True,
    card_bytes: int = 0,
    kernels: dict[str, Any] | None = None,
) -> MemoryPlan:
    """The plan of the growth stage that takes most, on one of `world_size` GPUs, or in processes on a CPU.

    `card_bytes` is a GPU's memory: kernels.keep_weight = "auto" keeps what its part of the free memory holds, and
    with 0 nothing. `kernels` is the record of a run that has chosen (pretrain.engine.kernel_choices.decide), and wins.
    """
    plans = [
        plan_stage(stage.config, world_size, cuda=cuda, card_bytes=card_bytes, kernels=kernels)
        for stage in config.stages
    ]
    return worst_of(plans)


def worst_of(plans: Sequence[MemoryPlan]) -> MemoryPlan:
    """The plan of the growth stage that takes most, of one plan for each."""
    return replace(max(plans, key=lambda plan: plan.total), host=max(plan.host for plan in plans))


def plan_stage(
    config: Config,
    world_size: int = 1,
    *,
    cuda: bool = True,
    card_bytes: int = 0,
    kernels: dict[str, Any] | None = None,
) -> MemoryPlan:
    """The same of one stage, whose configuration `config` is."""
    # The rest of a model with 8-bit linears is in the precision of the computation.
    compute = 4 if config.train.dtype == "fp32" else 2
    sharded = config.parallel.zero_stage > 0
    narrow = config.optimizer.weights != "fp32_master" or sharded
    dtype = torch.bfloat16 if compute == 2 else torch.float32
    int8 = config.optimizer.weights == "int8"
    shape = shape_of_model(config.model, config.linear, dtype, config.train.checkpoint_every_layers, int8)
    shape = shape.to(dtype if narrow else torch.float32)
    setting = Setting(
        config.model,
        config.train.micro_batch_size,
        config.train.seq_len,
        compute=compute,
        param=compute if narrow else 4,
        cuda=cuda,
        liger=cuda and config.kernels.backend != "torch",
        checkpoint_every=config.train.checkpoint_every_layers,
        int8=int8,
    )
    micro_steps = max(1, config.train.global_batch_size // (config.train.micro_batch_size * world_size))
    update: Update
    clips = config.train.grad_clip > 0
    if isinstance(config.optimizer, MatrixConfig):
        update = MatrixMemory(config.optimizer, shape, setting, world_size, clips)
    elif isinstance(config.optimizer, OwnConfig):
        update = ShardedMemory(config.optimizer, shape, setting, world_size, clips)
    else:
        update = element_memory(config, shape, setting, world_size)
    free = max(0, card_bytes - update.before)
    record = choices(config, shape, cuda, micro_steps, free, kernels)
    setting = replace(setting, choice=recorded(record))
    model, ledger = Model(config.linear, setting), Ledger()
    update.begin(ledger)
    ledger.take("support", support_bytes(shape) + model.derived())
    ledger.take("activations", model.tables)
    ledger.take("kept_weights", model.scratch())
    gradients = update.gradients(ledger)
    for micro_step in range(min(2, micro_steps)):
        gradients.last_micro_step = micro_step == min(2, micro_steps) - 1
        ledger.take("kept_weights", 0 if micro_step else model.kept())
        model.micro_step(ledger, gradients)
    update.update(ledger, gradients)
    return MemoryPlan(ledger.peaks, config.model.n_layers, update.host, record)


def support_bytes(shape: Transformer) -> int:
    """Buffers, but for codes, which are weights."""
    modules = (module for module in shape.modules() if not isinstance(module, Int8Linear))
    return sum(buffer.nbytes for module in modules for buffer in module.buffers(recurse=False))
