"""Timing of contestants that do the same work: in every turn each runs one short slice, in one process.

Machines are noisy and drift, so only the ratio within a turn means something; what is reported is its median.
"""

import datetime
import math
import os
import platform
import statistics
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kernels.measured import device_name

Work = Callable[[], object]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
OURS = "ours"
WARM_UP = 3

FLUSH_BYTES = 256 << 20
"""A size beyond the L2 cache of any GPU."""

COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Case:
    """`ours` and each of `peers` (name -> function) do the same work once per call."""

    name: str
    """Operation, and variant where it has several."""
    shape: str
    """E.g. "1376x512 rank 128 density 0.03, 1024 tokens"."""
    dtype: torch.dtype
    ours: Work
    peers: Mapping[str, Work]
    floor_bytes: int = 0
    """Bytes that any implementation must read and write: bounds what is possible. 0 where arithmetic is the bound."""


@dataclass(frozen=True)
class Alternatives:
    """One choice of `kernels.measured.fastest`: the implementations of `op` by name, at one set of `sizes`."""

    op: str
    sizes: tuple[int, ...]
    dtype: torch.dtype
    ways: Mapping[str, Work]


class Clock(ABC):
    """Times work on `device`. A slice of work should last `slice_seconds` or more."""

    slice_seconds: float
    bandwidth: float | None = None
    """Bytes per second of a large copy, read and written bytes counted; None where it is not measured."""

    def __init__(self, device: torch.device):
        self.device = device

    @abstractmethod
    def seconds(self, work: Work, calls: int, cold: bool) -> float:
        """Seconds per call, over `calls` calls; `cold`: with nothing of its input in a cache, where that can be had."""


class CpuClock(Clock):
    slice_seconds = 20e-3

    def seconds(self, work: Work, calls: int, cold: bool) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - started) / calls


class CudaClock(Clock):
    """Events on the stream, so the time is the GPU's. The flush keeps it busy while the work is launched."""

    slice_seconds = 2e-3

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        self.bandwidth = self._measure_bandwidth()

    def seconds(self, work: Work, calls: int, cold: bool) -> float:
        between = []
        for group in [1] * calls if cold else [calls]:
            self._flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(group):
                work()
            end.record()
            between.append((start, end))
        torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in between) / 1000 / calls

    def _measure_bandwidth(self) -> float:
        source = torch.zeros(COPY_BYTES // 2, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)

        def copy() -> None:
            target.copy_(source)

        self.seconds(copy, 3, cold=False)
        return COPY_BYTES / statistics.median(self.seconds(copy, 5, cold=False) for _ in range(5))


def clock_for(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock(device)


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
    ours = seconds[OURS]
    dtype = NAMES.get(case.dtype, str(case.dtype).removeprefix("torch."))
    floor = {}
    if case.floor_bytes and clock.bandwidth:
        floor["floor_fraction"] = case.floor_bytes / clock.bandwidth / statistics.median(ours)
    return [
        ratio_row(case.name, case.shape, dtype, clock.device, ours, peer, seconds[peer]) | floor for peer in case.peers
    ]


def ratio_row(
    name: str, shape: str, dtype: str, device: torch.device, ours: list[float], reference: str, theirs: list[float]
) -> dict[str, Any]:
    """What every benchmark reports of one peer, `reference`: medians over turns, of the ratio too."""
    return {
        "name": name,
        "shape": shape,
        "dtype": dtype,
        "device": device_name(device),
        "ours_ms": 1000 * statistics.median(ours),
        "reference": reference,
        "reference_ms": 1000 * statistics.median(theirs),
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
    }


def measure_alternatives(alternatives: Alternatives, clock: Clock, turns: int) -> dict[str, Any]:
    """What `kernels.measured.fastest` reads: `op`, `dtype`, `sizes`, and `ms` by the name of each way."""
    seconds = take_turns(alternatives.ways, clock, turns, cold=False)
    return {
        "op": alternatives.op,
        "dtype": str(alternatives.dtype).removeprefix("torch."),
        "sizes": list(alternatives.sizes),
        "ms": {way: 1000 * statistics.median(taken) for way, taken in seconds.items()},
    }


def _calls_per_slice(clock: Clock, work: Work, cold: bool) -> int:
    """Calls that fill a slice; a warm-up before them compiles what has to be."""
    clock.seconds(work, WARM_UP, cold)
    calls = 1
    while (missing := clock.slice_seconds / (calls * clock.seconds(work, calls, cold))) > 1:
        calls = math.ceil(calls * min(missing, 2))
    return calls


ROOT = Path(__file__).parents[2]


def environment(device: torch.device) -> dict[str, Any]:
    """`hardware`, `versions`, `commit` (ends in "-dirty" when files differ; None outside of git) and `date` (UTC)."""
    return {
        "hardware": _hardware(device),
        "versions": _versions(device),
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _hardware(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"name": device_name(device), "cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["memory_bytes"] = properties.total_memory
        found["multiprocessors"] = properties.multi_processor_count
        found["capability"] = f"{properties.major}.{properties.minor}"
    else:
        found["threads"] = torch.get_num_threads()
    return found


def _versions(device: torch.device) -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        found["triton"] = version("triton")
    except PackageNotFoundError:
        found["triton"] = None
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
        found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    return found


def _output(*command: str) -> str | None:
    """What the command prints; None where it does not exist or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
