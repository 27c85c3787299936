"""Clocks: seconds per call of some work, on a processor and on a GPU."""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

FLUSH_BYTES = 256 << 20
"""More than the L2 cache of any GPU."""

COPY_BYTES = 1 << 30

Work = Callable[[], object]


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
