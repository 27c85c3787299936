"""What to change so that a run fits a GPU, or makes use of one."""

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from model.errors import UserError
from pretrain.config.schema import Config
from pretrain.memory_plan.cards import fits, may_fit
from pretrain.optim import OPTIMIZERS
from pretrain.optim.config import MatrixConfig, OwnConfig
from pretrain.optim.rules import PRESETS

MOST = 3
"""Proposals."""

BATCH = "train.micro_batch_size"
BATCHES = (BATCH, "train.global_batch_size")

Change = dict[str, Any]
"""Values by dotted key; "--world-size" is the number of processes."""


def proposals(config: Config, world_size: int, card_bytes: int) -> list[Change]:
    """Up to three changes that make the run fit, the cheapest in time first; single levers before pairs of them.

    The order is a judgement, not a measurement: what leaves the arithmetic alone comes before what adds work, that
    before what adds processes, and another optimizer or rounding, which changes what is trained, comes last. Each
    proposal is a valid configuration. Few are planned: where the least that a change needs is too much, with the
    smallest micro-batch, it is left at that.
    """
    found: list[Change] = []
    levers = list(_levers(config, world_size))
    smallest = min((change.get(BATCH, 1 << 62) for change in levers), default=0)
    hopeful: dict[str, bool] = {}

    def may(change: Change) -> bool:
        key = json.dumps(change)
        if key not in hopeful:
            changed = _changed(config, change)
            hopeful[key] = changed is not None and may_fit(changed, change.get("--world-size", world_size), card_bytes)
        return hopeful[key]

    for changes in (levers, [one | other for one, other in combinations(levers, 2) if _agree(one, other)]):
        for change in changes:
            if len(found) == MOST:
                return found
            if any(set(earlier) <= set(change) for earlier in found):  # the same, and more of it
                continue
            if not may(change | {key: smallest for key in BATCHES if key in change and BATCH in change}):
                continue
            changed = _changed(config, change) if may(change) else None
            if changed is not None and fits(changed, change.get("--world-size", world_size), card_bytes):
                found.append(change)
    return found


def larger_micro_batch(config: Config, world_size: int, card_bytes: int) -> Change:
    """The most doublings of the micro-batch with which a run still fits; {} if none. The update stays the same.

    Recomputed activations may have to wait in host memory for that.
    """
    train = config.train
    if isinstance(config.optimizer, OwnConfig) and config.optimizer.update == "per_layer":
        return {}  # there the micro-batch is the whole one
    found, size = Change(), train.micro_batch_size
    ways = [Change()]
    if train.checkpoint_every_layers and not train.offload_activations:
        ways.append({"train.offload_activations": True})
    while train.global_batch_size % (2 * size * world_size) == 0:
        size *= 2
        changes = ({BATCH: size} | way for way in ways)
        change = next((change for change in changes if _fits(config, change, world_size, card_bytes)), None)
        if change is None:
            break
        found = change
    return found


def _fits(config: Config, change: Change, world_size: int, card_bytes: int) -> bool:
    changed = _changed(config, change)
    return changed is not None and may_fit(changed, world_size, card_bytes) and fits(changed, world_size, card_bytes)


def _agree(one: Change, other: Change) -> bool:
    """Whether both can be made: no key has another value in the other."""
    return all(one[key] == other[key] for key in set(one) & set(other))


def _levers(config: Config, world_size: int) -> Iterator[Change]:
    """The fixed list, cheapest first."""
    train, optimizer = config.train, config.optimizer
    if config.kernels.keep_weight not in ("auto", "none"):
        yield {"kernels.keep_weight": "none"}
    if not train.expandable_segments:
        yield {"train.expandable_segments": True}
    recomputed: Change = {"train.checkpoint_every_layers": 1}
    moved: Change = {"train.offload_activations": True}
    if train.checkpoint_every_layers and not train.offload_activations:
        yield moved
    size = train.micro_batch_size
    while size % 2 == 0 and size > 1:
        size //= 2
        yield {"train.micro_batch_size": size}
    if train.checkpoint_every_layers != 1:
        yield recomputed
        yield recomputed | moved
    own = isinstance(optimizer, OwnConfig)
    stage = max(2, config.parallel.zero_stage)
    if isinstance(optimizer, MatrixConfig) and PRESETS[optimizer.name].needs == "projected":
        yield {"optimizer.accumulators": "host"}
    if not own and config.parallel.offload == "none":
        yield {"parallel.zero_stage": stage, "parallel.offload": "optimizer"}
    if not own:
        for processes in (2, 4, 8):
            if processes > world_size:
                yield {"parallel.zero_stage": stage, "--world-size": processes}
        yield from _other_optimizers(config)
    if own and optimizer.moments != "8bit":
        yield {"optimizer.moments": "8bit"}
    if own and optimizer.weights == "fp32_master":
        yield {"optimizer.weights": "bf16_stochastic"}
    if own and optimizer.update == "step":
        alone: Change = {"optimizer.update": "per_layer", "train.grad_clip": 0.0}
        size = train.micro_batch_size
        yield alone | {"train.global_batch_size": size}
        while size % 2 == 0 and size > 1:  # such an update is one micro-step, so both become smaller together
            size //= 2
            yield alone | {"train.global_batch_size": size, "train.micro_batch_size": size}


def _other_optimizers(config: Config) -> Iterator[Change]:
    """With smaller state, at a quarter of the width as the papers' rank; the last ones with narrow weights too."""
    alone = {"parallel.zero_stage": 0} | ({} if config.parallel.offload == "none" else {"parallel.offload": "none"})
    narrow = {"optimizer.weights": "bf16_stochastic"}
    if config.linear.name != "dense":
        yield {"optimizer.name": "adamw8bit"} | alone
        yield {"optimizer.name": "adamw8bit"} | narrow | alone
        return
    rank = {"optimizer.rank": max(1, config.model.dim // 4)}
    yield {"optimizer.name": "galore_adamw8bit"} | rank | alone
    bases = {"optimizer.projection": "bf16", "optimizer.accumulators": "host"}
    yield {"optimizer.name": "galore_adamw8bit"} | rank | narrow | bases | alone
    yield {"optimizer.name": "q_galore"} | rank | alone


def _changed(config: Config, change: Change) -> Config | None:
    """The configuration with the change; None where that is not allowed."""
    tables = config.model_dump()
    for key, value in change.items():
        if key == "--world-size":
            continue
        table, name = key.split(".")
        if key == "optimizer.name":
            known = OPTIMIZERS[value].Config.model_fields
            tables[table] = {"name": value} | {k: v for k, v in tables[table].items() if k == "lr" and k in known}
        else:
            tables[table][name] = value
    try:
        return Config.model_validate(tables)
    except (ValidationError, UserError):
        return None


def describe(change: Change) -> str:
    """As on a command line."""
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in change.items()}
    return " ".join(f"{key} {value}" if key.startswith("--") else f"--{key}={value}" for key, value in words.items())
