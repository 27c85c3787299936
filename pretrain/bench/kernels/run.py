"""The operations that `sparlow bench kernels` times, and all cases of some of them, one after another."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from pretrain.bench.kernels import attention, eight_bit, linears, tiles, updates
from pretrain.bench.timing import DTYPES, Alternatives, Case, clock_for, measure, measure_alternatives

CASES: dict[str, Callable[[torch.device, torch.dtype], Iterator[Case]]] = {
    "sparse_low_rank_linear": linears.sparse_cases,
    "eight_bit_linear": eight_bit.cases,
    "block_low_rank_linear": linears.block_cases,
    "low_rank_update": updates.low_rank_cases,
    "adam8bit": updates.adam8bit_cases,
    "fira_update": updates.fira_cases,
    "decompress": tiles.decompress_cases,
    "quant": updates.quant_cases,
    "tile_gather": tiles.gather_cases,
    "attention": attention.cases,
}
"""What yields the cases of each operation; what matters most comes first, as time may end before the last."""

ALTERNATIVES: list[Callable[[torch.device, torch.dtype], Iterator[Alternatives]]] = [
    tiles.alternatives,
    linears.alternatives,
    eight_bit.alternatives,
]
"""Choices between implementations; `sparlow bench kernels --store` keeps what they come to for kernels/measured."""


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
    """The rows that `kernels.measured.fastest` chooses by, of every operation that has several implementations."""
    clock = clock_for(device)
    rows = []
    for generate in ALTERNATIVES:
        for dtype in dtypes:
            for alternatives in generate(device, DTYPES[dtype]):
                say(f"{' or '.join(alternatives.ways)}: {alternatives.op} {alternatives.sizes}, {dtype}")
                rows.append(measure_alternatives(alternatives, clock, turns))
                del alternatives
    return rows
