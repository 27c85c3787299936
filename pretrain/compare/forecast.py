"""How many runs a comparison is, what they take, and how long what is left will."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pretrain.compare.execute import Ended
from pretrain.compare.matrix import Method, Run, equal_steps, flops_of, with_steps
from pretrain.compare.outcome import Outcome
from pretrain.compare.progress import Progress


@dataclass
class Forecast:
    """What is expected of the methods that are to run."""

    steps: dict[str, list[int]]
    """Steps of each run that is certain, by method: its rates, its seeds, its seeds at equal FLOPs."""
    more: int
    """Runs at most, besides, for neighbours that are close."""
    tokens: int
    flops: float
    per_step: dict[str, float]
    """FLOPs of a step, by method, averaged over growth stages."""
    listing: list[str]
    """One line for each run that is certain."""
    took: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Seconds, and the steps that they were for, by method."""

    @property
    def runs(self) -> int:
        return sum(len(steps) for steps in self.steps.values())

    def lines(self) -> Iterator[str]:
        more = f", at most {self.more} more where neighbours are close" if self.more else ""
        yield f"{len(self.steps)} methods, {self.runs} runs{more}"
        yield f"{self.tokens:,} tokens, {self.flops:.3g} training FLOPs in those {self.runs}"

    def line(self, progress: Progress, ended: Ended, outcome: Outcome, places: int) -> str:
        """What to say of a run that has ended."""
        run = ended.run
        seconds, steps = self.took.get(run.method, (0.0, 0))
        if outcome.status == "done":
            self.took[run.method] = (seconds + ended.seconds, steps + run.steps)
        over = [other for other in progress.named() if other.method in self.steps and progress.has_ended(other)]
        total = max(self.runs, len(over) + len(progress.wanted()))
        result = f"loss {outcome.loss:.4f}" if outcome.loss is not None else f"{outcome.status}: {outcome.reason}"
        left = self._left(over) / places
        estimate = f"  about {_duration(left)} left" if left and len(over) < total else ""
        return f"[{len(over)} of {total}]  {run.words}  {result}  {_duration(ended.seconds)}{estimate}"

    def _left(self, over: list[Run]) -> float:
        """Seconds of one process after another."""
        if not self.took:
            return 0.0
        spent = sum(seconds for seconds, _ in self.took.values())
        per_flop = spent / sum(steps * self.per_step[method] for method, (_, steps) in self.took.items())
        left = 0.0
        for method, lengths in self.steps.items():
            steps = max(0, sum(lengths) - sum(run.steps for run in over if run.method == method))
            seconds, known = self.took.get(method, (per_flop * self.per_step[method], 1))
            left += steps * seconds / known
        return left


def forecast(progress: Progress) -> Forecast:
    """What the chosen methods of a comparison come to, before a run has told how its linears compute."""
    settings = progress.suite.suite
    baseline = progress.methods[settings.baseline]
    target = flops_of(baseline.config, baseline.planned_flops)
    chosen = [progress.methods[name] for name in progress.methods if name in progress.chosen]
    found = Forecast({}, len(settings.more_seeds) * len(chosen) * len(settings.equal), 0, 0.0, {}, [])
    for method in chosen:
        _add(found, method, settings.seeds, target if "flops" in settings.equal else None)
    return found


def _add(found: Forecast, method: Method, seeds: tuple[int, ...], target: float | None) -> None:
    base = method.config.schedule.total_steps
    lines = [f"lr {rate:g}  seed {seeds[0]}" for rate in method.rates]
    lines += [f"the best lr  seed {seed}" for seed in seeds[1:]]
    lengths = [base] * len(lines)
    if target is not None and (steps := equal_steps(method.config, method.planned_flops, target)) != base:
        lines += [f"the best lr  seed {seed}  about {steps} steps, for equal FLOPs" for seed in seeds]
        lengths += [steps] * len(seeds)
    found.steps[method.name] = lengths
    found.listing += [f"{method.name}  {line}" for line in lines]
    config = method.config
    found.tokens += sum(lengths) * config.tokens_per_update
    for steps in lengths:
        found.flops += flops_of(with_steps(config, steps), method.planned_flops)
    found.per_step[method.name] = flops_of(config, method.planned_flops) / base


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
