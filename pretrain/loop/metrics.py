"""Figures of a run: metrics.jsonl, TensorBoard, and the clock behind tokens per second."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from model.lfs import refuse_pointer
from pretrain.config.tables import WARM_UP_STEPS
from pretrain.loop.board import Board
from pretrain.loop.mirror import Mirror
from pretrain.loop.optional import reason
from pretrain.loop.records import RecordFile
from pretrain.loop.samples import SampleFile
from pretrain.machine.files import tolerate_full

METRICS, BOARD, SAMPLES = "metrics", "TensorBoard's files", "samples"


class Metrics:
    """Appends one JSON object per logged step and mirrors it to TensorBoard; only where `active` (rank 0).

    Whatever goes wrong costs no step. What cannot be written, because the disk is full for example, is kept until it
    can; `say` is told when either of the two cannot be written, and when it can again.
    """

    def __init__(self, run_dir: Path, resume_step: int, tensorboard: bool, active: bool, say: Callable[[str], None]):
        self._active, self._say = active, say
        self._complained: set[str] = set()
        self._board: Board | None = None
        self.mirror: Mirror | None = None
        """Where else figures and samples go."""
        if not active:
            return
        refuse_pointer(run_dir / "metrics.jsonl")
        self._file = RecordFile(run_dir / "metrics.jsonl", resume_step)
        self._samples = SampleFile(run_dir / "samples.jsonl")
        with tolerate_full(lambda error: self._complain(METRICS, error)):
            self._file.flush()
        if tensorboard:
            with self._tolerate(BOARD):
                self._board = Board(run_dir / "tensorboard", resume_step)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """`figures` by TensorBoard tag, into the record of `step`; what is not finite becomes null.

        Without any, nothing is written.
        """
        if not self._active or not figures:
            return
        self._file.put({"step": step, **_finite(figures)})
        self._flush_file()
        if self.mirror is not None:
            self.mirror.put(step, figures)
        if self._board is not None:
            for tag, value in figures.items():
                self._board.put(tag, value, step)
            self._flush_board()

    def has(self, step: int, tag: str) -> bool:
        """Whether the last record is of `step` and has the figure `tag`; only where active."""
        with self._tolerate(METRICS):
            record = self._file.last()
            return record is not None and record["step"] == step and tag in record
        return False

    def write_sample(self, step: int, prompt: str, text: str) -> None:
        """Keep a text that the model of `step` has written, `prompt` at its head."""
        if not self._active:
            return
        self._samples.put(step, prompt, text)
        with self._tolerate(SAMPLES):
            self._samples.flush()
            self._written_again(SAMPLES)
        if self.mirror is not None:
            self.mirror.put_sample(step, prompt, text)
        if self._board is not None:  # indented text is verbatim in Markdown
            self._board.put(f"samples/{prompt.strip()}", "    " + text.replace("\n", "\n    "), step)
            self._flush_board()

    def write_spectra(self, step: int, spectra: dict[str, list[Tensor]]) -> None:
        """Give TensorBoard alone a histogram of the singular values of each tag's matrices."""
        if self._board is None or not spectra:
            return
        for tag, matrices in spectra.items():
            self._board.put(f"{tag}/singular_values", torch.cat(matrices), step)
        self._flush_board()

    def close(self) -> None:
        if not self._active:
            return
        if self._file.waiting:
            self._flush_file()
        if self._file.waiting:
            self._say(f"{METRICS} of {len(self._file.waiting) + self._file.lost} logged steps were never written")
        if self._board is not None:
            with self._tolerate(BOARD):
                self._board.close()

    def _flush_file(self) -> None:
        kept = len(self._file.waiting) - 1
        with self._tolerate(METRICS):
            self._file.flush()
            if METRICS in self._complained:
                lost = f", {self._file.lost} were lost" if self._file.lost else ""
                self._say(f"{METRICS} are written again, {kept} records that were kept meanwhile among them{lost}")
                self._complained.remove(METRICS)
                self._file.lost = 0

    def _flush_board(self) -> None:
        assert self._board is not None
        with self._tolerate(BOARD):
            self._board.flush()
            self._written_again(BOARD)

    def _written_again(self, what: str) -> None:
        if what in self._complained:
            self._say(f"{what} are written again, with what was kept meanwhile")
            self._complained.remove(what)

    @contextmanager
    def _tolerate(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._complain(what, error)

    def _complain(self, what: str, error: Exception) -> None:
        if what not in self._complained:
            self._say(
                f"{what} cannot be written ({reason(error)}); training goes on without them, and keeps them until "
                "there is room"
            )
        self._complained.add(what)


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    return {tag: value if math.isfinite(value) else None for tag, value in figures.items()}


STEPS_KEPT = 1000
"""Durations that a `StepClock` keeps: a run of a million steps neither fills memory with them nor sorts them all."""


class StepClock:
    """Durations of the last STEPS_KEPT training steps, evaluation and saves not counted."""

    last: float
    """Seconds of the newest step."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=STEPS_KEPT)
        self._steps, self._tokens, self._last_tokens = 0, 0, 0
        self.last, self._last_waited = 0.0, 0.0
        self._stepping = self._saving = 0.0

    def add(self, seconds: float, tokens: int, waited: float = 0.0, usual: bool = True) -> None:
        """A step of so many seconds, `waited` of them for data, on so many input tokens, padding not counted.

        One that is not `usual`, because it was profiled, is the newest step but says nothing of the run's speed.
        """
        self.last, self._last_waited, self._last_tokens = seconds, waited, tokens
        self._stepping += seconds
        if usual:
            self._recent.append(seconds)
            self._steps, self._tokens = self._steps + 1, self._tokens + tokens

    def add_save(self, seconds: float) -> None:
        """Training has waited so many seconds for a checkpoint."""
        self._saving += seconds

    def take_checkpoint_wait(self) -> float:
        """Share of the time that was spent waiting for checkpoints since this was last asked, 0 to 1; steps and such
        waits are the time that counts."""
        saving, whole = self._saving, self._stepping + self._saving
        self._stepping = self._saving = 0.0
        return saving / whole if whole else 0.0

    @property
    def last_tokens_per_second(self) -> float:
        """Speed of the newest step."""
        return self._last_tokens / self.last

    @property
    def last_data_wait(self) -> float:
        """Share of the newest step that was spent waiting for data, 0 to 1."""
        return self._last_waited / self.last

    def tokens_per_second(self) -> float:
        """Divide the mean tokens of a step by its steady seconds."""
        return self._tokens / self._steps / self.steady_seconds()

    def percentile_ms(self, percent: int) -> float:
        """Return the duration of a step, in milliseconds, that so many of the last 200 do not exceed."""
        ordered = sorted(list(self._recent)[-200:])
        return 1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]

    @property
    def empty(self) -> bool:
        """Whether this process has made no step."""
        return not self._steps

    def steady_seconds(self) -> float:
        """Return the median of the last steps, the first WARM_UP_STEPS left out where there are more."""
        recent = list(self._recent)
        return statistics.median(recent[max(0, WARM_UP_STEPS + len(recent) - self._steps) :] or recent)
