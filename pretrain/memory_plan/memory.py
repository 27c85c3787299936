"""The peak of a run's memory in one process, and what it is made of."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from kernels.sparse_low_rank_linear.choice import Choice
from model.build import shape_of_model
from model.config import ModelConfig
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.engine.kernel_choices import choosing_linears, how_long, shape_name
from pretrain.loop.build import computed_in
from pretrain.memory_plan.ledger import Moment, Phase
from pretrain.memory_plan.observe import Observation, observe
from pretrain.memory_plan.rest import at_rest, layers_alike, with_layers


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of live tensors in the process that has most."""

    phases: dict[Phase, Moment]
    """The worst moment of each part of an optimizer step."""
    n_layers: int
    """Layers of the growth stage that takes most."""
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
    """Plan one stage, whose configuration `config` is, as `plan_memory` plans a run."""
    record = kernels if kernels and kernels.get("shapes") else _kernels(config, world_size, cuda, card_bytes)
    observed = _observed(_Case.of(config, world_size, cuda, record))
    return MemoryPlan(observed.phases, config.model.n_layers, observed.host, record)


def at_least(config: Config, world_size: int, card_bytes: int) -> int:
    """Bytes that a plan on GPUs cannot be below, found at a fraction of its cost.

    At stage 0 each moment of a step is linear in the number of layers, so the worst one is convex, and the line through
    the worst moments of two shallow models lies below that of a deep one. Refreshes, of which each step has its share
    in whole matrices, are left out.
    """
    most = 0
    for stage in config.stages:
        whole, every = stage.config, max(1, stage.config.train.checkpoint_every_layers)
        n, one, two = whole.model.n_layers, 2 * every, 3 * every
        if whole.parallel.zero_stage > 0 or world_size > 1 or n <= two or n % every or not layers_alike(whole):
            most = max(most, at_rest(whole, world_size, True))
            continue
        record = _kernels(whole, world_size, True, card_bytes)
        cases = [_Case.of(with_layers(whole, k), world_size, True, record, refreshes=False) for k in (one, two)]
        below, above = (_observed(case).phases for case in cases)
        slopes = {phase: (above[phase].total - below[phase].total) / (two - one) for phase in below}
        most = max(most, *(int(below[phase].total + (n - one) * slope) for phase, slope in slopes.items()))
    return most


def at_most(config: Config, world_size: int, card_bytes: int) -> int:
    """Bytes that a plan on GPUs cannot exceed, found without a step of its own for the card: what a step takes that
    keeps no W, and all that could be kept besides. Where one keeps its W, the gradient of one needs memory of its own.
    """
    most = 0
    for stage in (stage.config for stage in config.stages):
        record = _kernels(stage, world_size, True, card_bytes)
        shapes = record.get("shapes", {})
        bare = {shape: fields | {"keep": "none", "accumulate": False} for shape, fields in shapes.items()}
        total = plan_stage(stage, world_size, kernels=record | {"shapes": bare} if shapes else None).total
        if bare != shapes:
            computed, every = computed_in(stage), stage.train.checkpoint_every_layers
            numels = [n.in_features * n.out_features for n in _shape_of(stage.model, stage.linear, computed, every)[1]]
            way = Choice(**next(iter(shapes.values())))
            blocks = stage.model.n_layers if way.keep == "layer" and every == 1 else 1  # not kept at once
            total += sum(numels) * (computed.itemsize + 4 * way.accumulate) // blocks
            total += max(numels) * (computed.itemsize + 4)
        most = max(most, total)
    return most


@dataclass(frozen=True)
class _Case:
    """What decides a step's memory; other parts of a configuration do not."""

    parts: tuple[Any, ...]
    world_size: int
    cuda: bool
    refreshes: bool
    record: str
    config: Config = field(compare=False, repr=False)

    @classmethod
    def of(cls, config: Config, world_size: int, cuda: bool, record: dict[str, Any], refreshes: bool = True) -> "_Case":
        optimizer = config.optimizer.model_copy(update={"lr": 1.0})
        parts = (config.model, config.linear, optimizer, config.train, config.parallel, config.kernels.backend)
        return cls(parts, world_size, cuda, refreshes, json.dumps(record), config)


@lru_cache(maxsize=256)
def _observed(case: _Case) -> Observation:
    return observe(case.config, case.world_size, case.cuda, json.loads(case.record), case.refreshes)


@lru_cache(maxsize=64)
def _shape_of(model: ModelConfig, linear: Any, compute: torch.dtype, every: int) -> tuple[Transformer, Any]:
    """The model on meta, and those of its linears that choose how they compute; to be read only."""
    shape = shape_of_model(model, linear, compute, every)
    return shape, choosing_linears(shape)


def _kernels(config: Config, world_size: int, cuda: bool, card_bytes: int) -> dict[str, Any]:
    """The record of what a run's linears would choose (`pretrain.engine.kernel_choices.decide`) on the card.

    Where W is built in one kernel or two makes no difference here, and neither does a choice by measurements: the CSR
    path is planned where the configuration names it.
    """
    every = config.train.checkpoint_every_layers
    shape, linears = _shape_of(config.model, config.linear, computed_in(config), every)
    if not linears:
        return {}
    if config.kernels.path == "csr":
        choice = Choice(path="csr")
    else:
        micro_steps = max(1, config.train.global_batch_size // (config.train.micro_batch_size * world_size))
        free = max(0, card_bytes - at_rest(config, world_size, cuda)) if card_bytes else 0
        keep, accumulate = how_long(linears, shape, config, micro_steps, free)
        choice = Choice(keep=keep, accumulate=accumulate)
    shapes = {shape_name(linear): choice.to_json() for linear in linears}
    return {"device": "cuda" if cuda else "cpu", "shapes": shapes}
