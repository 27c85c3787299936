"""Stopping on SIGTERM or Ctrl-C: the first signal asks for a checkpoint and an orderly end, the second one kills."""

import signal
from types import FrameType

from pretrain.distributed import World, sum_over_ranks

_asked = False


def listen() -> None:
    """From now on SIGTERM and SIGINT set a flag that every loop polls."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)


def asked() -> bool:
    """Whether this process has been told to stop."""
    return _asked


def agreed(world: World) -> bool:
    """Whether any process has been told to stop; collective."""
    return sum_over_ranks(world, asked())[0] > 0


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
