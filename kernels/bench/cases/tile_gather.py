"""The gather of the values' gradient against a gather by int64 positions."""

from collections.abc import Iterator
from functools import partial

import torch

from kernels.bench import paper
from kernels.bench.case import Case
from kernels.bench.inputs import Inputs, Projection, projections
from kernels.tile_gather import tile_gather

SECTOR = 32
"""Bytes that a GPU reads at least."""


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in projections(device):
        yield _case(inputs, shape, dtype)


def _case(inputs: Inputs, shape: Projection, dtype: torch.dtype) -> Case:
    support, dense = inputs.support(shape), inputs.normal(shape.n_out, shape.n_in)
    index = support.flat().long()
    sectors = (index * dtype.itemsize // SECTOR).unique().numel()
    return Case(
        "tile_gather",
        f"{shape.n_out}x{shape.n_in} density {shape.density}",
        dtype,
        partial(tile_gather, dense, support),
        {paper.NAME: partial(paper.gather, dense, index)},
        sectors * SECTOR + support.nnz * (support.loc.element_size() + dtype.itemsize),
    )
