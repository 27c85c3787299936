"""Fira's update in one product against the passes of the released code (arXiv 2410.01623), two products among them."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.bench.case import Case
from kernels.bench.cases.quant import RELEASED
from kernels.bench.inputs import Inputs, projections
from kernels.fira_update import fira_update_
from kernels.fira_update.reference import GROWTH

LR, SCALE, DECAY = 1e-6, 0.25, 0.1
"""So small that thousands of calls leave W as it is."""


def published(W: Tensor, G: Tensor, P: Tensor, R: Tensor, N: Tensor, previous: Tensor) -> Tensor:
    """Projection from the left; the new state of the limiter."""
    back = torch.matmul(P, R) * SCALE
    scaling = torch.norm(N, dim=0) / (torch.norm(R, dim=0) + 1e-8)
    residual = (G - back) * scaling
    norm = torch.norm(residual)
    limiter = torch.clamp(norm / (previous + 1e-8), min=GROWTH) / GROWTH
    residual = residual / limiter
    W.add_(torch.matmul(P, N) * SCALE + residual, alpha=-LR)
    W.add_(W, alpha=-LR * DECAY)
    return norm / limiter


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in projections(device):
        W, G = inputs.normal(shape.n_out, shape.n_in), inputs.normal(shape.n_out, shape.n_in)
        P = torch.linalg.qr(inputs.normal(shape.n_out, shape.rank).float())[0].to(dtype).contiguous()
        R = P.t() @ G
        N, previous = R.sign(), torch.ones((), device=device)
        yield Case(
            "fira_update",
            f"{shape.n_out}x{shape.n_in} rank {shape.rank}",
            dtype,
            partial(fira_update_, W, G, P, R, N, previous, LR, SCALE, DECAY),
            {RELEASED: partial(published, W, G, P, R, N, previous)},
            2 * W.nbytes + 2 * G.nbytes + P.nbytes + R.nbytes + N.nbytes,
        )
