"""The guard of a run: steps that are not finite, and spikes of the loss and of the gradient's norm.

A step is judged twice: by its loss, which all ranks agree on before anybody updates, and by the norm of its gradient,
which every engine knows before it changes the first number. A loss or a gradient that is not finite is never applied:
no weight, moment, basis, residual or count changes. A spike, finite but far above what came before, is what
`guard.spikes` makes of it.

The rule for spikes is that of OLMo's SkipStepOptimizer (OLMo-core, olmo_core/optim/skip_step_optimizer.py): a value is
one if it exceeds the mean of the last `window` values by more than `sigma` of their standard deviations, the newest
left out, once there are `warmup` of them. There a step that was skipped stays in the window, so that a single NaN makes
mean and deviation NaN, and every step is skipped until it has rotated out. Here the window holds values of steps that
were applied, and nothing else: one bad step costs one step. It is part of the TrainState, so a resume judges alike.

Going back is that of PaLM (arXiv 2204.02311, section 5.1), whose losses spiked some twenty times although gradients
were clipped: they took a checkpoint from before the spike and left out the batches around it, and the spike did not
come again; nor did it when the same batches met another checkpoint, so no text was to blame, only text and weights
together. `rewind.py` does the same from the newest checkpoint on.

What is subtle: with optimizer.update = "per_layer" weights change inside of the backward pass. A loss is judged before
it, and skips all. A gradient that is not finite leaves as they are the weights that come after it in the backward pass,
which runs from the head to the embedding; those before it have moved, and the step is counted as partly applied. The
norm of the whole gradient comes too late to skip a spike, though not to go back from it.
"""

import math
from dataclasses import dataclass

from model.errors import RunFailed
from pretrain.config.tables import GuardConfig
from pretrain.engine.base import Update
from pretrain.loop.state import TrainState
from pretrain.machine.distributed import shared


@dataclass(frozen=True)
class Finding:
    """A loss or a gradient's norm that is not finite, or a spike."""

    what: str
    """loss or gradient."""
    value: float
    mean: float = math.nan
    deviation: float = math.nan
    """Standard deviation of the window."""
    count: int = 0
    """Values in the window."""

    @property
    def spike(self) -> bool:
        return math.isfinite(self.value)

    @property
    def reason(self) -> str:
        """The name that it is counted by."""
        return f"{self.what}_{'spike' if self.spike else 'not_finite'}"

    def __str__(self) -> str:
        if not self.spike:
            return f"the {self.what} is not finite"
        name = "loss" if self.what == "loss" else "gradient's norm"
        sigmas = (self.value - self.mean) / self.deviation if self.deviation else math.inf
        return (
            f"the {name} {self.value:.4g} is {sigmas:.1f} standard deviations above the mean of {self.count} steps "
            f"({self.mean:.4g}, deviation {self.deviation:.2g})"
        )


class Guard:
    """Judges steps by `config`; `state` is all that it remembers. Alike on all ranks: it sees what they agreed on."""

    def __init__(self, config: GuardConfig, state: TrainState):
        self.config, self.state = config, state

    @property
    def skips_spikes(self) -> bool:
        return self.config.spikes in ("skip", "rewind")

    def judge_loss(self, loss: float) -> Finding | None:
        """What is wrong with the mean loss of a step, if anything."""
        return self._judge("loss", loss, self.state.losses)

    def accepts(self, loss: float) -> bool:
        """Whether a step of this mean loss may be applied."""
        found = self.judge_loss(loss)
        return found is None or (found.spike and not self.skips_spikes)

    @property
    def largest_norm(self) -> float:
        """The gradient's norm above which a step is not applied."""
        return self._limit(self.state.grad_norms)[0] if self.skips_spikes else math.inf

    def record(self, loss: float, update: Update) -> list[Finding]:
        """Count a step, the newest, and let its values into the window; returns what was wrong with it.

        RunFailed when too many updates in a row were skipped.
        """
        state, found = self.state, [self.judge_loss(loss)]
        if not math.isnan(update.grad_norm):  # it was not dropped
            found.append(self._judge("gradient", update.grad_norm, state.grad_norms))
        findings = [finding for finding in found if finding]
        state.spikes += any(finding.spike for finding in findings)
        if update.applied:
            state.updates += 1
            state.consecutive_skips = 0
            if self.config.spikes != "off":
                # New lists: the old ones may be those of a checkpoint, or a default's.
                state.losses = [*state.losses, loss][-self.config.window :]
                state.grad_norms = [*state.grad_norms, update.grad_norm][-self.config.window :]
            return findings
        # An engine says so where a norm is NaN before it sees one.
        findings = findings or [Finding("gradient", math.nan)]
        state.skipped_steps += 1
        state.consecutive_skips += 1
        reason = "partly_applied" if update.partly else findings[0].reason
        state.skips = state.skips | {reason: state.skips.get(reason, 0) + 1}
        if state.consecutive_skips >= self.config.max_consecutive_skips:
            failure = RunFailed(
                f"{state.consecutive_skips} updates in a row were skipped, the last one because {findings[0]} "
                "(guard.max_consecutive_skips); lower optimizer.lr or set train.grad_clip"
            )
            raise shared(failure)
        return findings

    def goes_back(self, findings: list[Finding], update: Update) -> Finding | None:
        """What the run goes back from after the newest step, if it does: a spike, or a step that was partly applied."""
        if self.config.spikes != "rewind":
            return None
        return next((finding for finding in findings if finding.spike or update.partly), None)

    def require_rewind(self, cause: Finding) -> None:
        """RunFailed when the run has gone back as often as it may."""
        if len(self.state.rewinds) >= self.config.max_rewinds:
            failure = RunFailed(
                f"step {self.state.step}: {cause}, and the run has gone back {len(self.state.rewinds)} times already "
                "(guard.max_rewinds); raise guard.max_rewinds, or lower optimizer.lr"
            )
            raise shared(failure)

    def describe(self, findings: list[Finding], update: Update) -> str:
        """Say what was found in the newest step and what became of it."""
        why = " and ".join(map(str, findings))
        if update.partly:
            return f"{why}; weights before it in the backward pass have moved, all others have not"
        if update.applied:
            late = ", which comes after the weights have moved" if self.skips_spikes else ""
            return f'SPIKE: {why}{late}; update applied (guard.spikes = "{self.config.spikes}")'
        return f"{why}; update skipped ({self.state.skipped_steps} so far)"

    def figures(self) -> dict[str, float]:
        """Counts of the run so far, by TensorBoard tag; reasons that have not come up are left out."""
        state = self.state
        counts = {f"guard/{reason}": float(count) for reason, count in sorted(state.skips.items())}
        return counts | {"guard/spikes": state.spikes, "guard/rewinds": len(state.rewinds)}

    def _judge(self, what: str, value: float, window: list[float]) -> Finding | None:
        if not math.isfinite(value):
            return Finding(what, value)
        limit, mean, deviation = self._limit(window)
        return Finding(what, value, mean, deviation, len(window)) if value > limit else None

    def _limit(self, window: list[float]) -> tuple[float, float, float]:
        """(largest value that is no spike, mean, standard deviation) of a window; infinity until it has warmed up.

        In exactly rounded sums of differences: equal values have no deviation, whatever they are.
        """
        count = len(window)
        if self.config.spikes == "off" or count < self.config.warmup:
            return math.inf, math.nan, math.nan
        mean = window[0] + math.fsum(value - window[0] for value in window) / count
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in window) / (count - 1))
        return mean + self.config.sigma * deviation, mean, deviation
