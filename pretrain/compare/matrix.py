"""The methods and runs of a suite: for each a checked configuration, and the folder that it lives in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from model.errors import UserError
from pretrain.compare.suite import NONE, Budget, Suite
from pretrain.config.checks import check
from pretrain.config.load import validate
from pretrain.config.schema import Config
from pretrain.config.tables import Tables
from pretrain.plan import flops_per_update

KEPT_CHECKPOINTS = 1
"""Checkpoints of each run, where the base does not say otherwise: a comparison has many runs."""


@dataclass(frozen=True)
class Run:
    """One process of `sparlow train`."""

    method: str
    rate: float
    seed: int
    budget: Budget
    """tokens: the base's steps. flops: steps of its own."""
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)

    @property
    def steps(self) -> int:
        return self.config.schedule.total_steps

    @property
    def words(self) -> str:
        """What it is, for a line."""
        length = f"  {self.steps} steps" if self.budget == "flops" else ""
        return f"{self.method}  lr {self.rate:g}  seed {self.seed}{length}"


@dataclass(frozen=True)
class Method:
    """A linear, an optimizer and a growth, and the rates that it is tried at."""

    name: str
    slug: str
    """Its part of a folder's name."""
    rates: tuple[float, ...]
    config: Config
    """The run at the first rate and seed; its `run.dir` is the folder of all of the method's runs."""

    def run(self, rate: float, seed: int, steps: int) -> Run:
        """The run of `steps` at a rate and a seed. UserError where it cannot have so many."""
        config, name = self.config, f"lr-{rate!r}_seed-{seed}"
        budget: Budget = "tokens"
        if steps != config.schedule.total_steps:
            budget, name = "flops", f"{name}_flops-{steps}"
            config = with_steps(config, steps)
            check(config)
        update: dict[str, Any] = {
            "optimizer": config.optimizer.model_copy(update={"lr": rate}),
            "run": config.run.model_copy(update={"seed": seed, "dir": str(Path(config.run.dir) / name)}),
        }
        return Run(self.name, rate, seed, budget, config.model_copy(update=update))

    @cached_property
    def planned_flops(self) -> list[float]:
        """FLOPs of an update in each growth stage, as far as they are known before a run has chosen how to compute."""
        return [flops_per_update(stage.config, "executed", {}, 1) for stage in self.config.stages]


def make_methods(suite: Suite) -> dict[str, Method]:
    """All methods by name, each with a configuration that fits together at each rate; UserError names the method."""
    found = {}
    for name, (linear, optimizer, growth, listed) in suite.names.items():
        slug = "+".join([linear, optimizer] + ([] if growth == NONE else [growth]))
        for rate in reversed(listed.rates):
            raw = {section: dict(table) for section, table in suite.base.items()}
            raw["checkpoint"] = {"keep": KEPT_CHECKPOINTS} | raw.get("checkpoint", {})
            raw["linear"] = dict(suite.linears[linear])
            raw["optimizer"] = suite.optimizers[optimizer] | {"lr": float(rate)}
            raw["run"] = {"dir": str(Path(suite.suite.dir) / "runs" / slug), "seed": suite.suite.seeds[0]}
            if growth != NONE:
                raw["growth"] = {"enabled": True} | suite.growths[growth]
            try:
                config = validate(raw)
            except UserError as error:
                places = {"linear": linear, "optimizer": optimizer, "growth": growth}
                raise UserError(f"method {name!r}: {_in_suite(str(error), places)}") from None
        found[name] = Method(name, slug, tuple(map(float, listed.rates)), config)
    return found


def _in_suite(sentence: str, places: dict[str, str]) -> str:
    """A sentence about a run's tables, with the keys that the suite's file has."""

    def named(found: re.Match[str]) -> str:
        section = found[0][:-1]
        return f"{section}s.{places[section]}." if section in places else f"base.{section}."

    return re.sub(rf"(?<![\w.])({'|'.join(Tables.model_fields)})\.(?=[a-z])", named, sentence)


def with_steps(config: Config, steps: int) -> Config:
    return config.model_copy(update={"schedule": config.schedule.model_copy(update={"total_steps": steps})})


def flops_of(config: Config, per_update: Sequence[float]) -> float:
    """FLOPs of a run whose growth stages take `per_update` each step."""
    return sum((stage.end - stage.start) * flops for stage, flops in zip(config.stages, per_update, strict=True))


def equal_steps(config: Config, per_update: Sequence[float], target: float) -> int:
    """The number of steps whose FLOPs are nearest to `target`: less than one step away, where stages can be so short.

    `per_update` are the FLOPs of an update in each growth stage.
    """
    low, high = 1, 2
    while flops_of(with_steps(config, high), per_update) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if flops_of(with_steps(config, middle), per_update) < target:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda steps: abs(flops_of(with_steps(config, steps), per_update) - target))
