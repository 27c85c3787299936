"""Stopping on SIGTERM, Ctrl-C or a closed terminal: a signal asks for a checkpoint and an orderly end, a second kills.

Launchers pass on what the terminal has sent to everybody already: a signal within SAME_S of the first is the same one.
A terminal that closes (SIGHUP) only ever asks: nobody is impatient there, and the checkpoint of a Ctrl-C before it may
still be on its way. Under nohup it does not even ask.

Several processes must stop at the same place, and one that is told may be at another place than the rest. They agree
without an exchange between the training threads: all of them ask `due` at the same places in the same order and count
these. Once one has been told, each process's watch (pretrain/machine/watch.py) tells the count that its training thread
has reached and lets it go no further for the moment; the place to stop at is the one after the largest count, which
nobody has passed. So a step costs nothing but the counting while nobody is told.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

STOPPED = 143
"""Exit status of a run that a signal has stopped, with a checkpoint where it had made a step."""
KILLED = 137
"""Exit status after a second signal, as after kill -9: what was not committed is lost."""

SAME_S = 2.0

_asked_at: float | None = None
_hung_up = False
_opening = False
_pipe: tuple[int, int] | None = None
_taking = threading.RLock()

_changed = threading.Condition()
_wake: Callable[[], None] | None = None
_count = 0
_held = False
_place: int | None = None


def listen() -> None:
    """Note SIGTERM, SIGINT and, where it is not ignored, SIGHUP from now on; forgets those that have come.

    A thread of its own hears them too: Python runs a handler only when the main thread is not inside of C code, which
    may be writing a checkpoint or waiting for another process.
    """
    global _asked_at, _hung_up, _pipe
    _asked_at, _hung_up = None, False
    _tell_script("")
    if _pipe is None:
        _pipe = os.pipe()
        for end_of_pipe in _pipe:
            os.set_blocking(end_of_pipe, False)
        threading.Thread(target=_hear, args=(_pipe[0],), name="signals", daemon=True).start()
    signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _heard)
    signal.signal(signal.SIGINT, _heard)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _heard)


def opening() -> None:
    """Until `opened`, a signal ends the run where it is: all that it has made is committed."""
    global _opening
    _opening = True
    if asked():
        _end_opening()


def opened() -> None:
    """From now on, `due` tells where to stop."""
    global _opening
    _opening = False


def is_opening() -> bool:
    return _opening


def asked() -> bool:
    """Whether this process has been told to stop."""
    return _hung_up or _asked_at is not None


def due() -> bool:
    """Whether to stop here. All processes ask at the same places in the same order, and all get the same answer."""
    global _count
    if _wake is None:
        return asked()
    with _changed:
        while _held and _place is None:
            _changed.wait()
        _count += 1
        return _place is not None and _count >= _place


def stopped() -> None:
    """Tell the script that has started this process that it has stopped as it was told to: torchrun ends with 1."""
    _tell_script("stopped\n")


def _tell_script(text: str) -> None:
    if path := os.environ.get("SPARLOW_STOPPED"):
        with contextlib.suppress(OSError), open(path, "w") as file:
            file.write(text)


def agree_by(wake: Callable[[], None] | None) -> None:
    """Several processes: `wake` is called when this one is told, and `hold` and `stop_at` follow. None: only one."""
    global _wake, _count, _held, _place
    with _changed:
        _wake, _count, _held, _place = wake, 0, False, None


def hold() -> int:
    """Let `due` wait for `stop_at`; returns how often it has been answered."""
    global _held
    with _changed:
        _held = True
        return _count


def stop_at(place: int) -> None:
    """Let `due` say yes at its answer number `place`, counted from 1."""
    global _place
    with _changed:
        _place = place
        _changed.notify_all()


def is_agreed() -> bool:
    """Whether `stop_at` has been called."""
    return _place is not None


def _hear(pipe: int) -> None:
    while True:
        select.select([pipe], [], [])
        _take()


def _heard(number: int, frame: FrameType | None) -> None:
    """Take note at once, where the main thread is free to, before it goes on."""
    _take()


def _take() -> None:
    """Read the numbers of signals, each of which Python has written into the pipe as it came."""
    assert _pipe is not None
    with _taking, contextlib.suppress(BlockingIOError):
        for number in os.read(_pipe[0], 64):
            told(number)


def told(number: int) -> None:
    """Note a signal; a second one ends the process, save for SIGHUP."""
    global _asked_at, _hung_up
    if number == signal.SIGHUP:
        _hung_up = True
    elif number not in (signal.SIGTERM, signal.SIGINT):
        return
    elif _asked_at is None:
        _asked_at = time.monotonic()
    elif time.monotonic() - _asked_at > SAME_S:
        end("ended at once by a second signal; the checkpoint before is untouched", KILLED)
    if _opening:
        _end_opening()
    if _wake is not None:
        _wake()


def _end_opening() -> None:
    if _wake is not None:
        _wake()  # the watch ends all processes
    else:
        end("stopped while the run opened; the same command opens it again", STOPPED)


def end(sentence: str | None, status: int) -> NoReturn:
    """End this process now, from any thread, with `sentence` on stderr."""
    if status == STOPPED:
        stopped()
    unwritable = contextlib.suppress(OSError, ValueError, RuntimeError)  # closed, or written to by another thread
    with unwritable:
        sys.stdout.flush()
    with unwritable:
        if sentence:
            print(f"sparlow: {sentence}", file=sys.stderr, flush=True)
    os._exit(status)
