"""Stopping on SIGTERM or Ctrl-C: the first signal asks for a checkpoint and an orderly end, a second one kills.

Launchers pass on what the terminal has sent to everybody already: a signal within SAME_S of the first is the same one.
"""

import signal
import time
from types import FrameType

from pretrain.distributed import World, sum_over_ranks

SAME_S = 2.0

_asked_at: float | None = None


def listen() -> None:
    """From now on SIGTERM and SIGINT set a flag that every loop polls."""
    global _asked_at
    _asked_at = None
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)


def asked() -> bool:
    """Whether this process has been told to stop."""
    return _asked_at is not None


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
