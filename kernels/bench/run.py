"""All cases of some operations, one after another."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from kernels.bench.clock import clock_for
from kernels.bench.measure import DTYPES, measure, measure_alternatives
from kernels.bench.registry import ALTERNATIVES, CASES


def bench_kernels(
    device: torch.device, dtypes: Iterable[str], ops: Iterable[str], turns: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The rows of `ops` (keys of CASES) in `dtypes` (keys of DTYPES); `say` is told what is being timed."""
    clock = clock_for(device)
    rows = []
    for op in ops:
        for dtype in dtypes:
            for case in CASES[op](device, DTYPES[dtype]):
                say(f"{case.name}, {case.shape}, {dtype}")
                rows += measure(case, clock, turns)
                del case  # its memory goes before the next one's comes
    return rows


def bench_alternatives(
    device: torch.device, dtypes: Iterable[str], turns: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The rows that `kernels.dispatch.fastest` chooses by, of every operation that has several implementations."""
    clock = clock_for(device)
    rows = []
    for generate in ALTERNATIVES:
        for dtype in dtypes:
            for alternatives in generate(device, DTYPES[dtype]):
                say(f"{' or '.join(alternatives.ways)}: {alternatives.op} {alternatives.sizes}, {dtype}")
                rows.append(measure_alternatives(alternatives, clock, turns))
                del alternatives
    return rows
