"""Stopping on SIGTERM, Ctrl-C or a closed terminal: a signal asks for a checkpoint and an orderly end, a second kills.

Launchers pass on what the terminal has sent to everybody already: a signal within SAME_S of the first is the same one.
A terminal that closes (SIGHUP) only ever asks: nobody is impatient there, and the checkpoint of a Ctrl-C before it may
still be on its way. Under nohup it does not even ask.
"""

import signal
import time
from types import FrameType

from pretrain.machine.distributed import World, sum_over_ranks

SAME_S = 2.0

_asked_at: float | None = None
_hung_up = False


def listen() -> None:
    """Let SIGTERM, SIGINT and, where it is not ignored, SIGHUP set a flag that every loop polls."""
    global _asked_at, _hung_up
    _asked_at, _hung_up = None, False
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _on_hangup)


def asked() -> bool:
    """Whether this process has been told to stop."""
    return _hung_up or _asked_at is not None


def agreed(world: World) -> bool:
    """Whether any process has been told to stop; collective."""
    return sum_over_ranks(world, asked())[0] > 0


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _asked_at
    if _asked_at is None:
        _asked_at = time.monotonic()
    elif time.monotonic() - _asked_at > SAME_S:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _on_hangup(number: int, frame: FrameType | None) -> None:
    global _hung_up
    _hung_up = True
