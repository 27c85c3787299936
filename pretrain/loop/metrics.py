"""Figures of a run: metrics.jsonl, TensorBoard, and the clock behind tokens per second."""

import json
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from model.lfs import refuse_pointer
from pretrain.loop.optional import reason
from pretrain.machine.files import replace_text


class Metrics:
    """Appends one JSON object per logged step and mirrors it to TensorBoard; only where `active` (rank 0).

    Whatever goes wrong costs figures, not the run: of each of the two the first loss is told to `say`, and further ones
    are silent.
    """

    def __init__(self, run_dir: Path, resume_step: int, tensorboard: bool, active: bool, say: Callable[[str], None]):
        self._path = run_dir / "metrics.jsonl"
        self._active, self._say = active, say
        self._complained: set[str] = set()
        self._board: Any = None
        if not active:
            return
        refuse_pointer(self._path)
        self._keep([record for record in self._records() if record["step"] <= resume_step])
        if tensorboard:
            with self._tolerate("TensorBoard's files"):
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """`figures` by TensorBoard tag; what is not finite becomes null. Without any, nothing is written."""
        if not self._active or not figures:
            return
        with self._tolerate("metrics"), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **_finite(figures)}) + "\n")
        self._mirror(step, figures)

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Put more `figures` into the record of `step`, the last one, or write one where there is none yet."""
        if not self._active or not figures:
            return
        with self._tolerate("metrics"):
            records = self._records()
            last = records.pop() if records and records[-1]["step"] == step else {"step": step}
            self._keep([*records, last | _finite(figures)])
        self._mirror(step, figures)

    def has(self, step: int, tag: str) -> bool:
        """Whether the last record is of `step` and has the figure `tag`; only where active."""
        with self._tolerate("metrics"):
            records = self._records()
            return bool(records) and records[-1]["step"] == step and tag in records[-1]
        return False

    def write_text(self, step: int, tag: str, text: str) -> None:
        if self._board is not None:
            with self._tolerate("TensorBoard's files"):  # indented text is verbatim in Markdown
                self._board.add_text(tag, "    " + text.replace("\n", "\n    "), step)

    def close(self) -> None:
        if self._board is not None:
            with self._tolerate("TensorBoard's files"):
                self._board.close()

    def _mirror(self, step: int, figures: dict[str, float]) -> None:
        if self._board is not None:
            with self._tolerate("TensorBoard's files"):
                for tag, value in figures.items():
                    self._board.add_scalar(tag, value, step)

    def _records(self) -> list[dict[str, Any]]:
        """What the file holds; a line that a kill has cut is left out."""
        records = []
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []:
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                records.append(record | {"step": int(record["step"])})
        return records

    def _keep(self, records: list[dict[str, Any]]) -> None:
        replace_text(self._path, "".join(json.dumps(record) + "\n" for record in records))

    @contextmanager
    def _tolerate(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if what not in self._complained:
                self._say(f"{what} cannot be written ({reason(error)}); training goes on without them")
            self._complained.add(what)


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    return {tag: value if math.isfinite(value) else None for tag, value in figures.items()}


class StepClock:
    """Durations of training steps, evaluation and saves not counted."""

    def __init__(self) -> None:
        self._all: list[float] = []
        self._tokens, self._last_tokens = 0, 0
        self._last_waited = 0.0

    def add(self, seconds: float, tokens: int, waited: float = 0.0) -> None:
        """A step of so many seconds, `waited` of them for data, on so many input tokens, padding not counted."""
        self._all.append(seconds)
        self._last_waited = waited
        self._tokens, self._last_tokens = self._tokens + tokens, tokens

    @property
    def last(self) -> float:
        """Seconds of the newest step."""
        return self._all[-1]

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
        return self._tokens / len(self._all) / self.steady_seconds()

    def percentile_ms(self, percent: int) -> float:
        """Return the duration of a step, in milliseconds, that so many of the last 200 do not exceed."""
        ordered = sorted(self._all[-200:])
        return 1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]

    @property
    def empty(self) -> bool:
        """Whether this process has made no step."""
        return not self._all

    def steady_seconds(self) -> float:
        """Return the median step of this process, the first five left out where there are more."""
        return statistics.median(self._all[5:] or self._all)
