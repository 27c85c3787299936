"""What a run shows: a live bar on a terminal, plain lines elsewhere, nothing on ranks other than 0."""

import contextlib
import errno
import os
import select
import sys
from typing import Any, TextIO, cast

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


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


GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""What writing fails with when nobody will ever read it again: a closed pipe, a closed terminal, a closed file."""


def failure(stream: TextIO | None) -> OSError | None:
    """Why what `stream` holds back cannot be written, where it cannot."""
    try:
        if stream is not None:
            stream.flush()
    except OSError as error:
        return error
    except ValueError:  # closed in this process
        return OSError(errno.EBADF, os.strerror(errno.EBADF))
    # A write that has failed leaves nothing to flush, but the pipe still tells.
    with contextlib.suppress(OSError, ValueError):
        pipe = select.poll()
        pipe.register(stream.fileno() if stream is not None else -1, 0)
        if pipe.poll(0):
            return OSError(errno.EPIPE, os.strerror(errno.EPIPE))
    return None


def mute(stream: TextIO | None) -> None:
    """Let everything that is still written to `stream`, also by others and at exit, vanish without an error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Output:
    """sys.stdout for a program that goes on without it: no write fails, and once nobody reads, all of it is muted."""

    def __init__(self) -> None:
        # While a bar is shown, rich puts a stand-in into sys.stdout, which writes to this object.
        self._stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)

    def write(self, text: str) -> int:
        self._tolerate("write", text)
        return len(text)

    def flush(self) -> None:
        self._tolerate("flush")

    def _tolerate(self, name: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, name)(*arguments)
        except UnicodeEncodeError:  # a sample in a script that the terminal's encoding lacks
            self._tolerate(name, *(text.encode("ascii", "backslashreplace").decode() for text in arguments))
        except (OSError, ValueError) as error:
            if getattr(error, "errno", errno.EBADF) in GONE:
                mute(self._stream)
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    print(f"standard output is closed ({error}); going on without it", file=sys.stderr, flush=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
