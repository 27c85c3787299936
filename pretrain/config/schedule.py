"""Learning-rate schedules: pure functions of the step, with a linear warm-up from zero.

Update number `step` (counted from 1) uses `factor(step)`; exactly `total_steps` updates are made, and the last one
uses the schedule's end value. Steps count over the whole run, resumes included.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from model.schema import Frozen


class Schedule(Frozen):
    """What all schedules share."""

    total_steps: int = Field(10_000, ge=1)
    """Length of the schedule in optimizer steps; the same in every resume."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Part of total_steps in which the learning rate rises linearly from 0."""

    @property
    def warmup_steps(self) -> int:
        return round(self.warmup_fraction * self.total_steps)

    def factor(self, step: int) -> float:
        """Multiplier of the peak learning rate for update `step`, 1 <= step <= total_steps."""
        assert 1 <= step <= self.total_steps, step
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        return self.after_warmup((step - self.warmup_steps) / (self.total_steps - self.warmup_steps))

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """Multiplier at `progress` in (0, 1] of the steps that follow the warm-up."""


class Cosine(Schedule):
    """Half a cosine from 1 to min_lr_ratio."""

    name: Literal["cosine"] = "cosine"
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate of the last step as a part of the peak."""

    def after_warmup(self, progress: float) -> float:
        return half_cosine(self.min_lr_ratio, progress)


class CosineRestarts(Schedule):
    """Half a cosine from 1 to min_lr_ratio that falls to 0 at intervals and rises back (ReLoRA, arXiv 2307.05695).

    The published multiplier of a count c, with the period R, the warm-up w and the warm-up after a restart v, is the
    cosine's at c, but for c mod R = q < v and c >= R: there it is q / v times the cosine's at c - q + v. Here c is the
    number of the update, from 1: update R makes no change, and what is merged and reset after it begins at 1 / v. The
    last update uses min_lr_ratio, where c would restart.
    """

    name: Literal["cosine_restarts"] = "cosine_restarts"
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate of the last step as a part of the peak."""
    restart_every: int = Field(1000, ge=1)
    """Steps from one fall to the next; a divisor of total_steps, and linear.merge_every for linears that merge."""
    restart_warmup_steps: int = Field(100, ge=0)
    """Steps in which the learning rate rises back after a fall; less than restart_every."""

    def factor(self, step: int) -> float:
        since = step % self.restart_every
        if step < self.restart_every or step == self.total_steps or since >= self.restart_warmup_steps:
            return super().factor(step)
        return since / self.restart_warmup_steps * super().factor(step - since + self.restart_warmup_steps)

    def after_warmup(self, progress: float) -> float:
        return half_cosine(self.min_lr_ratio, progress)


class Linear(Schedule):
    """A straight line from 1 to min_lr_ratio."""

    name: Literal["linear"] = "linear"
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate of the last step as a part of the peak."""

    def after_warmup(self, progress: float) -> float:
        return 1 - (1 - self.min_lr_ratio) * progress


class Constant(Schedule):
    """The peak learning rate to the end."""

    name: Literal["constant"] = "constant"

    def after_warmup(self, progress: float) -> float:
        return 1.0


class WSD(Schedule):
    """Warm-up, stable, decay (arXiv 2404.06395): constant, then a straight line to min_lr_ratio."""

    name: Literal["wsd"] = "wsd"
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate of the last step as a part of the peak."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """Part of the steps after the warm-up in which the learning rate falls."""

    def after_warmup(self, progress: float) -> float:
        decayed = max(0.0, progress - (1 - self.decay_fraction)) / self.decay_fraction
        return 1 - (1 - self.min_lr_ratio) * decayed


def half_cosine(least: float, progress: float) -> float:
    """Half a cosine from 1 at `progress` 0 to `least` at 1."""
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))


ScheduleConfig = Annotated[Cosine | CosineRestarts | Linear | Constant | WSD, Field(discriminator="name")]
