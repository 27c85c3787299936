"""Decompression against a matmul and an int64 scatter-add, and on a GPU one kernel against two; the gather likewise."""

from collections.abc import Iterator
from functools import partial

import torch

from kernels.backend import uses_triton
from kernels.decompress import decompress, tile_gather
from pretrain.bench.kernels import paper
from pretrain.bench.kernels.inputs import Inputs, Projection, projections
from pretrain.bench.timing import Alternatives, Case

BYTES_BOUND_BELOW = 256
"""The rank below which writing W takes a GPU longer than the product: rank FLOPs per byte in bf16."""

SECTOR = 32
"""Bytes that a GPU reads at least."""


def decompress_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in projections(device):
        yield from _decompress_cases(inputs, shape, dtype)


def _decompress_cases(inputs: Inputs, shape: Projection, dtype: torch.dtype) -> Iterator[Case]:
    A, B, values, support = inputs.factors(shape)
    index = support.flat().long()
    numbers = A.numel() + B.numel() + values.numel() + shape.n_out * shape.n_in
    moved = numbers * dtype.itemsize + support.nnz * support.loc.element_size()
    floor = moved if shape.rank < BYTES_BOUND_BELOW else 0
    two = partial(decompress, A, B, values, support, shape.scale)

    def published() -> torch.Tensor:
        return paper.decompress(A * shape.scale, B, values, index)

    yield Case("decompress", str(shape), dtype, two, {paper.NAME: published}, floor)
    if uses_triton(B):
        one = partial(two, fused=True)
        yield Case(
            "decompress in one kernel", str(shape), dtype, one, {"decompress": two, paper.NAME: published}, floor
        )


def alternatives(device: torch.device, dtype: torch.dtype) -> Iterator[Alternatives]:
    """One kernel ("fused") or a matmul and a scatter ("matmul"), where kernels run."""
    inputs = Inputs(device, dtype)
    for shape in projections(device) if uses_triton(inputs.normal(1)) else []:
        A, B, values, support = inputs.factors(shape)
        two = partial(decompress, A, B, values, support, shape.scale)
        sizes = (shape.n_out, shape.n_in, shape.rank, support.nnz)
        yield Alternatives("decompress", sizes, dtype, {"matmul": two, "fused": partial(two, fused=True)})


def gather_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in projections(device):
        yield _gather_case(inputs, shape, dtype)


def _gather_case(inputs: Inputs, shape: Projection, dtype: torch.dtype) -> Case:
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
