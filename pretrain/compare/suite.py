"""The file of a comparison, typed: which methods, at which rates and seeds, on what common ground."""

import re
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field

from model.schema import Frozen

NAME = re.compile("[A-Za-z0-9_-]{1,40}")
"""Names of linears, optimizers and growths: parts of folders' names."""
NONE = "none"
"""The growth that every suite has: the whole model from the first step on."""

Budget = Literal["tokens", "flops"]
Seed = Annotated[int, Field(ge=0)]


class SuiteConfig(Frozen):
    """What all methods are given alike."""

    dir: str = Field("runs/suites/default", min_length=1)
    """Folder of the comparison: runs, table and pictures."""
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    """Seeds of every method at its best rate; its rates are tried with the first one."""
    baseline: str = Field(min_length=1)
    """Method that the others are compared with, by its name: "linear + optimizer" or "linear + optimizer + growth"."""
    equal: tuple[Budget, ...] = Field(("tokens",), min_length=1)
    """What methods have the same amount of: tokens (and steps), training FLOPs, or a table for each."""
    rates: int = Field(3, ge=1)
    """Learning rates that every method lists: the same tuning budget for all."""
    more_seeds: tuple[Seed, ...] = ()
    """Further seeds for neighbours in the ranking whose means are less than two standard deviations apart."""


class MethodsConfig(Frozen):
    """Methods with the same learning rates: each linear with each optimizer with each growth."""

    linear: tuple[str, ...] = Field(min_length=1)
    """Names of [linears.NAME]."""
    optimizer: tuple[str, ...] = Field(min_length=1)
    """Names of [optimizers.NAME]."""
    growth: tuple[str, ...] = Field((NONE,), min_length=1)
    """Names of [growths.NAME]; "none" trains the whole model from the first step on."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """Peak learning rates to choose from, in rising order."""


class Suite(Frozen):
    """A comparison."""

    suite: SuiteConfig
    base: dict[str, dict[str, Any]]
    """Tables that all runs share, as a run's TOML has them: [base.model], [base.schedule], [base.data], ..."""
    linears: dict[str, dict[str, Any]]
    """[linear] tables by names of your choice."""
    optimizers: dict[str, dict[str, Any]]
    """[optimizer] tables by names of your choice, without lr."""
    growths: dict[str, dict[str, Any]] = Field({})
    """[growth] tables by names of your choice."""
    methods: tuple[MethodsConfig, ...] = Field(min_length=1)

    @property
    def names(self) -> "dict[str, tuple[str, str, str, MethodsConfig]]":
        """Methods by name: linear, optimizer, growth, and where they are listed."""
        return {
            method_name(*parts): (*parts, listed)
            for listed in self.methods
            for parts in product(listed.linear, listed.optimizer, listed.growth)
        }


def method_name(linear: str, optimizer: str, growth: str) -> str:
    return " + ".join([linear, optimizer] + ([] if growth == NONE else [growth]))
