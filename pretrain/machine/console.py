"""What a run shows: a live bar on a terminal, plain lines elsewhere, nothing on ranks other than 0."""

from typing import Any, TextIO, cast

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pretrain.machine.output import Output


class Console:
    """Prints lines, and tracks steps; `active` is false on ranks other than 0."""

    def __init__(self, active: bool):
        # rich ends the program when its output is a closed pipe; a run goes on.
        self._rich = RichConsole(file=cast(TextIO, Output()), quiet=not active, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: Any = None

    def say(self, line: str) -> None:
        self._rich.print(line, markup=False)

    def start_steps(self, done: int, total: int) -> None:
        if not self._rich.is_terminal:
            return
        columns = (TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(None), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.description}"), console=self._rich)
        self._task = self._progress.add_task("", total=total, completed=done)
        self._progress.start()

    def step(self, done: int, line: str | None) -> None:
        """`line` is a logged step's: the bar's text on a terminal, a line of its own elsewhere."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, description=line)
        elif line:
            self.say(f"step {done:>6}  {line}")

    def stop_steps(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
