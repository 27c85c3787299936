"""Updates of weights against the passes of the released codes over whole matrices, one after another.

8-bit Adam's peers are torch's fused AdamW with fp32 moments, and the definition.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.adam8bit import Adam8bitState, adam8bit_, reference
from kernels.fira_update import fira_update_
from kernels.fira_update.reference import GROWTH
from kernels.low_rank_update import low_rank_update_
from kernels.quant import dequantize, quantize
from pretrain.bench.kernels.inputs import Inputs, projections
from pretrain.bench.timing import Case

RELEASED = "passes of the released code"

LR, SCALE, DECAY = 1e-6, 0.25, 0.1
"""Steps so small that thousands of calls leave W as it is."""

ADAM_LR, BETAS, EPS, STEP = 1e-3, (0.9, 0.999), 1e-8, 10


def _published_low_rank(W: Tensor, P: Tensor, N: Tensor) -> None:
    """Back-projection, scaling, update and decay, as in galore_torch's AdamW."""
    update = torch.matmul(P, N) * SCALE
    W.add_(update, alpha=-LR)
    W.add_(W, alpha=-LR * DECAY)


def low_rank_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in projections(device):
        W, N = inputs.normal(shape.n_out, shape.n_in), inputs.normal(shape.rank, shape.n_in)
        P = inputs.orthonormal(shape.n_out, shape.rank)
        size, factors = f"{shape.n_out}x{shape.n_in} rank {shape.rank}", P.nbytes + N.nbytes
        for key in (None, 1) if dtype == torch.bfloat16 else (None,):
            name = "low_rank_update" if key is None else "low_rank_update, stochastic"
            ours = partial(low_rank_update_, W, P, N, LR, SCALE, DECAY, key=key)
            peers = {RELEASED: partial(_published_low_rank, W, P, N)}
            yield Case(name, size, dtype, ours, peers, 2 * W.nbytes + factors)


def _published_fira(W: Tensor, G: Tensor, P: Tensor, R: Tensor, N: Tensor, previous: Tensor) -> Tensor:
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


def fira_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in projections(device):
        W, G = inputs.normal(shape.n_out, shape.n_in), inputs.normal(shape.n_out, shape.n_in)
        P = inputs.orthonormal(shape.n_out, shape.rank)
        R = P.t() @ G
        N, previous = R.sign(), torch.ones((), device=device)
        yield Case(
            "fira_update",
            f"{shape.n_out}x{shape.n_in} rank {shape.rank}",
            dtype,
            partial(fira_update_, W, G, P, R, N, previous, LR, SCALE, DECAY),
            {RELEASED: partial(_published_fira, W, G, P, R, N, previous)},
            2 * W.nbytes + 2 * G.nbytes + P.nbytes + R.nbytes + N.nbytes,
        )


def _published_quantize(W: Tensor, stochastic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of groups of 256 consecutive elements, one dense pass after another."""
    w = W.reshape(-1, 256)
    high, low = w.amax(1, keepdim=True), w.amin(1, keepdim=True)
    scales = (high - low).clamp(min=1e-5) / 255
    zeros = (-torch.round(low / scales)).clamp_(0, 255)
    codes = w / scales
    if stochastic:
        down = codes.floor()
        codes = torch.where(torch.rand_like(codes) < codes - down, down + 1, down)
    else:
        codes = codes.round_()
    return codes.add_(zeros).clamp_(0, 255).to(torch.uint8), scales, zeros


def _published_dequantize(codes: Tensor, scales: Tensor, zeros: Tensor, shape: torch.Size) -> Tensor:
    return ((codes.to(scales.dtype) - zeros) * scales).reshape(shape)


def quant_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in projections(device):
        if shape.n_in % 256:
            continue  # the released code cannot divide it into groups
        W = inputs.normal(shape.n_out, shape.n_in)
        q, out = quantize(W, 8), torch.empty_like(W)
        size, moved = f"{shape.n_out}x{shape.n_in}, 8 bits", W.nbytes + q.nbytes
        for name, key in (("quantize", None), ("quantize stochastically", 1)):
            peers = {RELEASED: partial(_published_quantize, W, key is not None)}
            yield Case(name, size, dtype, partial(quantize, W, 8, key=key), peers, moved)
        peer = partial(_published_dequantize, *_published_quantize(W, False), W.shape)
        yield Case("dequantize", size, dtype, partial(dequantize, q, dtype, out=out), {RELEASED: peer}, moved)


def adam8bit_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in dict.fromkeys((shape.n_out, shape.n_in) for shape in projections(device)):
        yield _adam8bit_case(inputs, shape, dtype)


def _adam8bit_case(inputs: Inputs, shape: tuple[int, int], dtype: torch.dtype) -> Case:
    param, grad = inputs.normal(*shape), inputs.normal(*shape)
    ours, state = param.clone(), Adam8bitState.zeros_for(param)
    defined, defined_state = param.clone(), Adam8bitState.zeros_for(param)
    hyper = reference.hyper_parameters(ADAM_LR, BETAS, EPS, STEP, 0.0, "torch", param.device)
    param.grad = grad
    adamw = torch.optim.AdamW([param], lr=ADAM_LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    def definition() -> None:
        defined.copy_(reference.adam8bit(defined, grad, defined_state, hyper))

    peers = {"torch AdamW fused": adamw.step, "definition": definition}
    states = 2 * sum(t.nbytes for t in (state.exp_avg, state.exp_avg_sq, state.exp_avg_absmax, state.exp_avg_sq_absmax))
    step = partial(adam8bit_, ours, grad, state, lr=ADAM_LR, betas=BETAS, eps=EPS, step=STEP)
    return Case("adam8bit", f"{shape[0]}x{shape[1]}", dtype, step, peers, grad.nbytes + 2 * ours.nbytes + states)
