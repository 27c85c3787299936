"""The operations that `sparlow bench kernels` times, those that matter most first: time may end before the last.

A new one is a file in kernels/bench/cases and a line here.
"""

from collections.abc import Callable, Iterator

import torch

from kernels.bench.case import Alternatives, Case
from kernels.bench.cases import (
    adam8bit,
    block_low_rank_linear,
    decompress,
    fira_update,
    low_rank_update,
    quant,
    sparse_low_rank_linear,
    tile_gather,
)

CASES: dict[str, Callable[[torch.device, torch.dtype], Iterator[Case]]] = {
    "sparse_low_rank_linear": sparse_low_rank_linear.cases,
    "block_low_rank_linear": block_low_rank_linear.cases,
    "low_rank_update": low_rank_update.cases,
    "adam8bit": adam8bit.cases,
    "fira_update": fira_update.cases,
    "decompress": decompress.cases,
    "quant": quant.cases,
    "tile_gather": tile_gather.cases,
}

ALTERNATIVES: list[Callable[[torch.device, torch.dtype], Iterator[Alternatives]]] = [
    decompress.alternatives,
    sparse_low_rank_linear.alternatives,
]
"""Choices between implementations; `sparlow bench kernels --store` keeps what they come to for kernels/dispatch.py."""
