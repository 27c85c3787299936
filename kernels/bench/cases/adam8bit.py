"""A step of 8-bit Adam against torch's fused AdamW with fp32 moments and against the definition."""

from collections.abc import Iterator
from functools import partial

import torch

from kernels.adam8bit import Adam8bitState, adam8bit_, reference
from kernels.adam8bit.hyper import hyper_parameters
from kernels.bench.case import Case
from kernels.bench.inputs import Inputs, projections

LR, BETAS, EPS, STEP = 1e-3, (0.9, 0.999), 1e-8, 10


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in dict.fromkeys((shape.n_out, shape.n_in) for shape in projections(device)):
        yield _case(inputs, shape, dtype)


def _case(inputs: Inputs, shape: tuple[int, int], dtype: torch.dtype) -> Case:
    param, grad = inputs.normal(*shape), inputs.normal(*shape)
    ours, state = param.clone(), Adam8bitState.zeros_for(param)
    defined, defined_state = param.clone(), Adam8bitState.zeros_for(param)
    hyper = hyper_parameters(LR, BETAS, EPS, STEP, 0.0, "torch", param.device)
    param.grad = grad
    adamw = torch.optim.AdamW([param], lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    def definition() -> None:
        defined.copy_(reference.adam8bit(defined, grad, defined_state, hyper))

    peers = {"torch AdamW fused": adamw.step, "definition": definition}
    states = 2 * sum(t.nbytes for t in (state.exp_avg, state.exp_avg_sq, state.exp_avg_absmax, state.exp_avg_sq_absmax))
    step = partial(adam8bit_, ours, grad, state, lr=LR, betas=BETAS, eps=EPS, step=STEP)
    return Case("adam8bit", f"{shape[0]}x{shape[1]}", dtype, step, peers, grad.nbytes + 2 * ours.nbytes + states)
