"""Which runs a comparison wants next: a pure function of what is known of those before them."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from pretrain.compare.matrix import Method, Run, equal_steps, flops_of
from pretrain.compare.outcome import Outcome
from pretrain.compare.suite import Budget, Suite

NEIGHBOURS = 2.0
"""Standard deviations between the means of two neighbours in the ranking below which they get more seeds."""


@dataclass(frozen=True)
class Standing:
    """Losses of a method at its best rate."""

    method: Method
    best: Run | None
    """Its run of the base's tokens with the least loss of all rates; None where there is none."""
    runs: tuple[Run, ...]
    losses: dict[int, float]
    """Held-out loss by seed, of the runs that have one."""

    @property
    def mean(self) -> float:
        """Infinite where no run has a loss."""
        return statistics.fmean(self.losses.values()) if self.losses else math.inf

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None of a single one."""
        return statistics.stdev(self.losses.values()) if len(self.losses) > 1 else None

    def percent_over(self, other: "Standing") -> float | None:
        """The difference to the mean of `other`, over the seeds that both have; None without one."""
        seeds = self.losses.keys() & other.losses.keys()
        if not seeds:
            return None
        return 100 * (sum(self.losses[seed] for seed in seeds) / sum(other.losses[seed] for seed in seeds) - 1)

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the least or the largest of the list, so that a better one may lie beyond."""
        rates = self.method.rates
        return self.best is not None and len(rates) > 1 and self.best.rate in (rates[0], rates[-1])


class Progress:
    """What is known of a comparison's runs, by their folders, and what follows from it."""

    def __init__(self, suite: Suite, methods: dict[str, Method], outcomes: dict[Path, Outcome]):
        self.suite, self.methods, self.outcomes = suite, methods, outcomes
        self.chosen = set(methods)
        """Names of the methods that this command runs."""
        self.tried: set[Path] = set()
        """Runs that this command has tried: one that fails is not tried twice."""
        self.refused: dict[tuple[str, Budget], str] = {}
        """Sentences for methods that cannot have the steps of equal FLOPs."""
        self._steps: dict[str, int] = {}
        self._runs: dict[tuple[str, float, int, int], Run] = {}

    def has_ended(self, run: Run) -> bool:
        """Whether this command has no more to do about a run: one that has failed is tried again by the next one."""
        outcome = self.outcomes.get(run.folder)
        if outcome is None:
            return False
        return outcome.settled or run.folder in self.tried or run.method not in self.chosen

    def loss(self, run: Run) -> float | None:
        outcome = self.outcomes.get(run.folder)
        return outcome.loss if outcome else None

    def tuning(self, method: Method) -> list[Run]:
        """The runs that show its best rate."""
        seed, steps = self.suite.suite.seeds[0], method.config.schedule.total_steps
        return [self._run(method, rate, seed, steps) for rate in method.rates]

    def _run(self, method: Method, rate: float, seed: int, steps: int) -> Run:
        """The run, checked once: it is asked for again whenever another one has ended."""
        key = (method.name, rate, seed, steps)
        if key not in self._runs:
            self._runs[key] = method.run(rate, seed, steps)
        return self._runs[key]

    def best(self, method: Method) -> Run | None:
        """The tuning run with the least loss; None while some have not ended, and where none has a loss."""
        runs = self.tuning(method)
        losses = [(loss, run.rate, run) for run in runs if (loss := self.loss(run)) is not None]
        if not losses or not all(self.has_ended(run) for run in runs):
            return None
        return min(losses, key=lambda found: found[:2])[2]

    def steps(self, method: Method, budget: Budget) -> int | None:
        """How long its runs of a budget are; None while that is not known, and where it cannot be."""
        if budget == "tokens":
            return method.config.schedule.total_steps
        if method.name not in self._steps:
            baseline = self.methods[self.suite.suite.baseline]
            runs = [self.best(baseline), self.best(method)]
            if runs[0] is None or runs[1] is None:
                return None
            target = flops_of(runs[0].config, self._flops(runs[0], baseline))
            self._steps[method.name] = equal_steps(runs[1].config, self._flops(runs[1], method), target)
        return self._steps[method.name]

    def _flops(self, run: Run, method: Method) -> list[float]:
        """FLOPs of an update in each growth stage as the run has counted them, by how its linears compute."""
        counted = [stage.get("flops") for stage in self.outcomes[run.folder].summary.get("stages") or []]
        lengths = [stage.end - stage.start for stage in run.config.stages]
        if len(counted) != len(lengths) or not all(counted) or not all(lengths):
            return method.planned_flops
        return [flops / steps for flops, steps in zip(counted, lengths, strict=True)]

    def at_best(self, method: Method, budget: Budget, seeds: Sequence[int]) -> list[Run]:
        """Its runs of a budget at its best rate; empty while that or their length is not known."""
        best, steps = self.best(method), self.steps(method, budget)
        if best is None or steps is None:
            return []
        try:
            return [self._run(method, best.rate, seed, steps) for seed in seeds]
        except UserError as error:
            self.refused[method.name, budget] = f"{steps} steps, equal in FLOPs: {error}"
            return []

    def standing(self, method: Method, budget: Budget, seeds: Sequence[int]) -> Standing:
        runs = [run for run in self.at_best(method, budget, seeds) if run.folder in self.outcomes]
        losses = {run.seed: loss for run in runs if (loss := self.loss(run)) is not None}
        return Standing(method, self.best(method), tuple(runs), losses)

    def ranking(self, budget: Budget) -> list[Standing]:
        """All methods by their means, those without a loss last. Further seeds count for those that they were for."""
        settings = self.suite.suite
        close = {method.name for method in self._close(budget)}
        found = []
        for method in self.methods.values():
            more = settings.more_seeds if method.name in close else ()
            found.append(self.standing(method, budget, [*settings.seeds, *more]))
        return sorted(found, key=lambda standing: standing.mean)

    def named(self) -> list[Run]:
        """All runs that can be named by now, those that decide more first."""
        settings, methods = self.suite.suite, self.methods.values()
        runs = [run for method in methods for run in self.tuning(method)]
        for budget in settings.equal:
            for method in methods:
                runs += self.at_best(method, budget, settings.seeds)
        if all(self.has_ended(run) for run in runs):
            for budget in settings.equal:
                for method in self._close(budget):
                    runs += self.at_best(method, budget, settings.more_seeds)
        return list({run.folder: run for run in runs}.values())

    def wanted(self) -> list[Run]:
        """The named runs that this command has still to make; empty at the end."""
        return [run for run in self.named() if run.method in self.chosen and not self.has_ended(run)]

    def _close(self, budget: Budget) -> list[Method]:
        """Methods that the seeds of all do not tell from a neighbour. More seeds do not count here, so that they change
        nothing about who gets them.
        """
        found = [self.standing(method, budget, self.suite.suite.seeds) for method in self.methods.values()]
        ranked = sorted((one for one in found if one.spread is not None), key=lambda standing: standing.mean)
        close: dict[str, Method] = {}
        for one, two in itertools.pairwise(ranked):
            pooled = math.sqrt(((one.spread or 0.0) ** 2 + (two.spread or 0.0) ** 2) / 2)
            if two.mean - one.mean < NEIGHBOURS * pooled:
                close |= {one.method.name: one.method, two.method.name: two.method}
        return list(close.values())
