"""Faults on purpose, for the tests: `SPARLOW_FAULT=<point>[:n][/rank]` strikes at the n-th visit of one named point.

Several are separated by commas; with a rank, only that process is struck.
"""

import os
import signal
from collections import Counter

from torch import Tensor

SPIKE = 50.0
"""By how much "loss_spike" and "gradient_spike" are too large."""

_visits: Counter[str] = Counter()


def fault_point(point: str) -> None:
    """Die here as by `kill -9`, when the environment names this point."""
    if fault_flag(point):
        os.kill(os.getpid(), signal.SIGKILL)


def fault_flag(point: str) -> bool:
    """Whether the environment asks for a fault at this visit of `point`."""
    asked = os.environ.get("SPARLOW_FAULT")
    wanted = (
        [fault for fault in asked.split(",") if fault.partition("/")[0].partition(":")[0] == point] if asked else []
    )
    if not wanted:
        return False
    _visits[point] += 1
    return any(_strikes(fault, _visits[point]) for fault in wanted)


def _strikes(fault: str, visit: int) -> bool:
    place, _, rank = fault.partition("/")
    count = place.partition(":")[2]
    return visit == int(count or 1) and rank in ("", os.environ.get("RANK", "0"))


def spoiled(loss: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return a loss (0-d) as the backward pass takes it and as it is seen (detached), and a factor of its gradient.

    "loss_spike" makes both too large, "nan_loss" what is seen alone not finite, and "gradient_spike" the gradient alone
    too large.
    """
    loss = loss * SPIKE if fault_flag("loss_spike") else loss
    seen = loss.detach()
    seen = seen * float("nan") if fault_flag("nan_loss") else seen
    return loss, seen, SPIKE if fault_flag("gradient_spike") else 1.0
