"""Timing a case: in every turn each contestant runs one short slice, in one process.

Machines are noisy and drift, so only the ratio within a turn means something; what is reported is its median.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from kernels.bench.case import Alternatives, Case
from kernels.bench.clock import Clock, Work
from kernels.hardware import device_name

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
OURS = "ours"
WARM_UP = 3


def take_turns(contestants: Mapping[str, Work], clock: Clock, turns: int, cold: bool) -> dict[str, list[float]]:
    """Seconds per call of every contestant, one figure per turn; `cold` as in Clock.seconds."""
    calls = {name: _calls_per_slice(clock, work, cold) for name, work in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns):
        for name in list(contestants)[:: -1 if turn % 2 else 1]:
            seconds[name].append(clock.seconds(contestants[name], calls[name], cold))
    return seconds


def measure(case: Case, clock: Clock, turns: int) -> list[dict[str, Any]]:
    """One row per peer; `ratio` is ours / peer in time.

    `floor_fraction`, where bytes are the bound and the bandwidth is known: the time that moving these bytes takes a
    copy / our time, so 1 is the best possible.
    """
    seconds = take_turns({OURS: case.ours, **case.peers}, clock, turns, cold=case.floor_bytes > 0)
    ours = statistics.median(seconds[OURS])
    row: dict[str, Any] = {
        "name": case.name,
        "shape": case.shape,
        "dtype": NAMES.get(case.dtype, str(case.dtype).removeprefix("torch.")),
        "device": device_name(clock.device),
        "ours_ms": 1000 * ours,
    }
    floor = (
        {"floor_fraction": case.floor_bytes / clock.bandwidth / ours} if case.floor_bytes and clock.bandwidth else {}
    )
    return [
        row
        | {
            "reference": peer,
            "reference_ms": 1000 * statistics.median(seconds[peer]),
            "ratio": statistics.median(a / b for a, b in zip(seconds[OURS], seconds[peer], strict=True)),
        }
        | floor
        for peer in case.peers
    ]


def measure_alternatives(alternatives: Alternatives, clock: Clock, turns: int) -> dict[str, Any]:
    """What `kernels.dispatch.fastest` reads: `op`, `dtype`, `sizes`, and `ms` by the name of each way."""
    seconds = take_turns(alternatives.ways, clock, turns, cold=False)
    return {
        "op": alternatives.op,
        "dtype": str(alternatives.dtype).removeprefix("torch."),
        "sizes": list(alternatives.sizes),
        "ms": {way: 1000 * statistics.median(taken) for way, taken in seconds.items()},
    }


def _calls_per_slice(clock: Clock, work: Work, cold: bool) -> int:
    """After a warm-up, which compiles what has to be."""
    clock.seconds(work, WARM_UP, cold)
    calls = 1
    while (missing := clock.slice_seconds / (calls * clock.seconds(work, calls, cold))) > 1:
        calls = math.ceil(calls * min(missing, 2))
    return calls
