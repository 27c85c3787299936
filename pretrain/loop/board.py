"""TensorBoard's files of a run, which go on after a full disk."""

import threading
from collections import deque
from pathlib import Path
from typing import Any

from torch import Tensor

MOST_WAITING = 100_000
"""Figures and texts that are kept in memory until they are on the disk, at most."""


class Board:
    """Scalars, texts and histograms by step. What cannot be written waits in memory for a new file, which TensorBoard
    reads as the old one's continuation: a file whose end a full disk has cut takes no more.
    """

    def __init__(self, folder: Path, resume_step: int):
        self._folder = folder
        self._writer: Any = None
        self._waiting: deque[tuple[str, str, float | str | Tensor, int]] = deque(maxlen=MOST_WAITING)
        _silence_writer_threads()
        self._open(resume_step + 1)

    def put(self, tag: str, value: float | str | Tensor, step: int) -> None:
        """Take a figure, a text in Markdown, or values for a histogram. `flush` writes it."""
        method = {str: "add_text", Tensor: "add_histogram"}.get(type(value), "add_scalar")
        self._waiting.append((method, tag, value, step))

    def flush(self) -> None:
        """Write what waits, and wait until the file has it; whatever error TensorBoard raises, where it cannot be."""
        if self._writer is None:
            self._open(None)
        try:
            for method, tag, value, step in self._waiting:
                getattr(self._writer, method)(tag, value, step)
            self._writer.flush()
        except Exception:
            self._writer = None
            raise
        self._waiting.clear()

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)


def _silence_writer_threads() -> None:
    """TensorBoard's threads end with an error that the next write raises again; they need not print it too."""
    previous = threading.excepthook
    if getattr(previous, "__module__", None) == __name__:
        return

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            previous(arguments)

    threading.excepthook = hook
