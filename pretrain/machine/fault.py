"""Faults on purpose, for the tests: `SPARLOW_FAULT=<point>[:n]` strikes at the n-th visit of one named point."""

import os
import signal
from collections import Counter

_visits: Counter[str] = Counter()


def fault_point(point: str) -> None:
    """Die here as by `kill -9`, when the environment names this point."""
    if fault_flag(point):
        os.kill(os.getpid(), signal.SIGKILL)


def fault_flag(point: str) -> bool:
    """Whether the environment asks for a fault at this visit of `point`."""
    wanted, _, count = os.environ.get("SPARLOW_FAULT", "").partition(":")
    if wanted != point:
        return False
    _visits[point] += 1
    return _visits[point] == int(count or 1)
