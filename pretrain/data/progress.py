"""How far `prepare` is: a bar on a terminal, a plain line now and then elsewhere; always on stderr."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

LINE_SECONDS = 10.0


class Progress:
    """Bytes of text done, of `total` when it is known, with rate and time left.

    `begun` of them were done before; the rate does not count them.
    """

    def __init__(self, label: str, total: int | None = None, begun: int = 0):
        self.label, self.total, self.done, self._begun, self._estimated = label, total, begun, begun, False
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._start = self._spoken = time.monotonic()
        columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = RichProgress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(label, total=total, completed=begun)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self._bar.stop()
        if self._estimated:
            self.total = None
        if kind is None and not self._console.is_terminal:
            self._say()

    def expect(self, total: float) -> None:
        """Take `total` for the bytes that there will have been, as far as one can tell by now."""
        self.total, self._estimated = max(self.done, round(total)), True
        self._bar.update(self._task, total=self.total)

    def advance(self, count: int) -> None:
        self.done += count
        self._bar.update(self._task, completed=self.done)
        if not self._console.is_terminal and time.monotonic() - self._spoken > LINE_SECONDS:
            self._spoken = time.monotonic()
            self._say()

    def _say(self) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        total = f" of {self.total / 1e6:.1f}" if self.total else ""
        rate = (self.done - self._begun) / seconds
        line = f"{self.label} {self.done / 1e6:.1f}{total} MB, {rate / 1e6:.1f} MB/s, {seconds:.1f} s"
        if self.total and rate and self.done < self.total:
            line += f", {(self.total - self.done) / rate:.0f} s left"
        self._console.print(line, markup=False)
