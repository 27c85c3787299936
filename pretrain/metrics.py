"""Figures of a run: metrics.jsonl, TensorBoard, and the clock behind tokens per second."""

import json
import os
import statistics
from collections import deque
from pathlib import Path
from typing import IO, Any


class Metrics:
    """Appends one JSON object per logged step and mirrors it to TensorBoard; only where `active` (rank 0)."""

    def __init__(self, run_dir: Path, resume_step: int, tensorboard: bool, active: bool):
        self._file: IO[str] | None = None
        self._board: Any = None
        if not active:
            return
        path = run_dir / "metrics.jsonl"
        _forget_after(path, resume_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held for the life of the run
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """`figures` by TensorBoard tag; without any, nothing is written."""
        if self._file is None or not figures:
            return
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        if self._board is not None:
            for tag, value in figures.items():
                self._board.add_scalar(tag, value, step)

    def write_text(self, step: int, tag: str, text: str) -> None:
        if self._board is not None:
            self._board.add_text(tag, "    " + text.replace("\n", "\n    "), step)  # indented: Markdown's verbatim

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resume will make again, and a last line that a kill has cut."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)


class StepClock:
    """Durations of training steps, evaluation and saves not counted."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=200)
        self._all: list[float] = []

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)
        self._all.append(seconds)

    @property
    def last(self) -> float:
        """Seconds of the newest step."""
        return self._all[-1]

    def percentile_ms(self, percent: int) -> float:
        """Of the last 200 steps, in milliseconds."""
        ordered = sorted(self._recent)
        return 1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]

    def steady_seconds(self) -> float:
        """Median step of this process, the first five left out where there are more."""
        return statistics.median(self._all[5:] or self._all)
