"""The low-rank weight update against the released codes of GaLore and Q-GaLore, one dense pass after another."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.bench.case import Case
from kernels.bench.cases.quant import RELEASED, published_dequantize, published_quantize
from kernels.bench.inputs import Inputs, projections
from kernels.low_rank_update import low_rank_update_
from kernels.quant import quantize

LR, SCALE, DECAY = 1e-6, 0.25, 0.1
"""So small that thousands of calls leave W as it is."""


def published(W: Tensor, P: Tensor, N: Tensor) -> None:
    """Back-projection, scaling, update and decay, as in galore_torch's AdamW."""
    update = torch.matmul(P, N) * SCALE
    W.add_(update, alpha=-LR)
    W.add_(W, alpha=-LR * DECAY)


def published_quantized(
    weight: tuple[Tensor, Tensor, Tensor], projector: tuple[Tensor, Tensor, Tensor], shape: torch.Size, N: Tensor
) -> None:
    """The same between dequantisation of weight and projector, and stochastic quantisation."""
    P = published_dequantize(*projector, shape)
    W = published_dequantize(*weight, torch.Size((P.shape[0], N.shape[1])))
    published(W, P, N)
    for old, new in zip(weight, published_quantize(W, True), strict=True):
        old.copy_(new)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in projections(device):
        W, N = inputs.normal(shape.n_out, shape.n_in), inputs.normal(shape.rank, shape.n_in)
        P = torch.linalg.qr(inputs.normal(shape.n_out, shape.rank).float())[0].to(dtype).contiguous()
        size, factors = f"{shape.n_out}x{shape.n_in} rank {shape.rank}", P.nbytes + N.nbytes
        for key in (None, 1) if dtype == torch.bfloat16 else (None,):
            name = "low_rank_update" if key is None else "low_rank_update, stochastic"
            ours = partial(low_rank_update_, W, P, N, LR, SCALE, DECAY, key=key)
            yield Case(name, size, dtype, ours, {RELEASED: partial(published, W, P, N)}, 2 * W.nbytes + factors)
        if shape.n_in % 256 or P.numel() % 256:
            continue  # the released code cannot divide it into groups
        q, P4 = quantize(W, 8), quantize(P, 4)
        peer = partial(published_quantized, published_quantize(W, False), published_quantize(P, False), P.shape, N)
        yield Case(
            "low_rank_update, 8-bit weight, 4-bit projector",
            size,
            dtype,
            partial(low_rank_update_, q, P4, N, LR, SCALE, DECAY, key=1),
            {RELEASED: peer},
            2 * q.nbytes + P4.nbytes + N.nbytes,
        )
