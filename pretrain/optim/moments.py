"""Adam's moments of a projected gradient, kept in fp32, bf16, 8 bits or factored."""

from dataclasses import fields

import torch
from torch import Tensor

from kernels.adam8bit import Adam8bitState, adam8bit_direction
from kernels.adam8bit.reference import dequantise, quantise
from kernels.rounding import WORD, round_to
from model.seeding import derive_seed
from pretrain.optim.config import MatrixConfig
from pretrain.optim.signs import signed

State = dict[str, Tensor]

ADAFACTOR_EPS = 1e-30
"""Added to squared gradients by Adafactor."""


def init_moments(config: MatrixConfig, shape: tuple[int, int], device: torch.device, counted: bool = False) -> State:
    """Zero moments of a tensor of `shape`.

    With `counted`, which rotation implies, "count" (0-d fp64) holds how many steps they have seen: for rules that reset
    their moments it is not the step's number, and bias correction follows it.
    """
    count = {"count": torch.zeros((), dtype=torch.float64, device=device)} if counted or config.rotate_moments else {}
    if config.moments == "8bit":
        return dict(vars(Adam8bitState.zeros_for(torch.empty(shape, device=device)))) | count
    if config.moments == "adafactor":
        return {
            "exp_avg_sq_row": torch.zeros(shape[0], device=device),
            "exp_avg_sq_col": torch.zeros(shape[1], device=device),
        } | count
    dtype = torch.bfloat16 if config.moments == "bf16" else torch.float32
    return {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("exp_avg", "exp_avg_sq")} | count


def correction(config: MatrixConfig, count: int | Tensor) -> float | Tensor:
    """c of `direction` after `count` steps."""
    if config.moments == "adafactor" or config.eps_mode == "torch":
        return 1.0
    beta1, beta2 = config.betas
    return (1 - beta2**count) ** 0.5 / (1 - beta1**count)


def direction(
    config: MatrixConfig, state: State, gradient: Tensor, step: int, name: str
) -> tuple[Tensor, float | Tensor]:
    """(N, c): Adam's direction is c N, with everything that depends on the step alone in c; changes `state`.

    eps_mode "galore": N = m / (sqrt(v) + eps), c = sqrt(1 - beta2^t) / (1 - beta1^t). "torch": N with both corrections
    inside, c = 1. Adafactor has no first moment, its update is clipped, and c = 1. `gradient` fp32; step counts from 1.
    It and `name`, the matrix's, seed the rounding of bf16 moments, so that no two matrices err alike.
    """
    count = state["count"].add_(1) if "count" in state else step
    if config.moments == "8bit":
        N = _adam8bit(config, state, gradient, step)
    elif config.moments == "adafactor":
        N = _adafactor(state, gradient, count)
    else:
        N = _adam(config, state, gradient, count, derive_seed(step, "moments", name))
    return signed(config, N, gradient), correction(config, count)


def load(config: MatrixConfig, state: State) -> tuple[Tensor, Tensor]:
    """(exp_avg, exp_avg_sq) in fp32: the state itself where that is fp32."""
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    if config.moments == "8bit":
        m = dequantise(exp_avg, state["exp_avg_absmax"], signed=True).view(exp_avg.shape)
        return m, dequantise(exp_avg_sq, state["exp_avg_sq_absmax"], signed=False).view(exp_avg.shape)
    return exp_avg.float(), exp_avg_sq.float()


def store(config: MatrixConfig, state: State, m: Tensor, v: Tensor, seed: int) -> None:
    """Keep fp32 moments (rank, n) as `config.moments` says; v >= 0.

    In bf16, v is rounded stochastically by `seed`: with beta2 = 0.999 it changes by less than half of its last place
    in a step, so to nearest it would never fall.
    """
    if config.moments == "8bit":
        for name, value, signed in (("exp_avg", m, True), ("exp_avg_sq", v, False)):
            codes, absmax = quantise(value.flatten(), signed)
            state[name].copy_(codes.view(value.shape))
            state[f"{name}_absmax"].copy_(absmax)
        return
    state["exp_avg"].copy_(m)
    state["exp_avg_sq"].copy_(round_to(v, torch.bfloat16, seed & WORD) if config.moments == "bf16" else v)


def _adam(config: MatrixConfig, state: State, gradient: Tensor, count: int | Tensor, seed: int) -> Tensor:
    beta1, beta2 = config.betas
    m, v = load(config, state)
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    if config.moments == "bf16":
        store(config, state, m, v, seed)
    if config.eps_mode == "torch":
        return m / (v.sqrt().div_((1 - beta2**count) ** 0.5).add_(config.eps)).mul_(1 - beta1**count)
    return m / v.sqrt().add_(config.eps)


def _adam8bit(config: MatrixConfig, state: State, gradient: Tensor, step: int) -> Tensor:
    """The kernel corrects the bias itself: for "galore" always that of step 1, which is divided out."""
    galore = config.eps_mode == "galore"
    moments = Adam8bitState(*(state[field.name] for field in fields(Adam8bitState)))
    N = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    adam8bit_direction(
        gradient, moments, N, betas=config.betas, eps=config.eps, step=1 if galore else step, eps_mode=config.eps_mode
    )
    return N.div_(correction(config, 1)) if galore else N


def _adafactor(state: State, gradient: Tensor, count: int | Tensor) -> Tensor:
    """Adafactor (arXiv 1804.04235, algorithm 4) without first moment: beta2 = 1 - t^-0.8, updates clipped at RMS 1."""
    row, col = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
    square = gradient.square().add_(ADAFACTOR_EPS)
    weight = count**-0.8
    row.add_((square.mean(1) - row) * weight)
    col.add_((square.mean(0) - col) * weight)
    N = gradient * (row / row.mean()).rsqrt()[:, None] * col.rsqrt()
    return N / N.square().mean().sqrt().clamp(min=1.0)


def rotate_moments(config: MatrixConfig, state: State, old: Tensor, new: Tensor, name: str, step: int) -> None:
    """Moments of old^T G become ones of new^T G, in place; old and new (m, rank) fp32 with orthonormal columns.

    With C = new^T old, exp_avg becomes C exp_avg, and the second moment follows LDAdam (arXiv 2410.16103, section 3.1):
    the variance exp_avg_sq - exp_avg^2, corrected for bias, turns by C o C and the new mean's square joins it. Where C
    has no energy, both are 0: a new direction starts as at step 1, without its bias correction. Adafactor has no mean:
    its row factor turns by C o C.

    `name`, the matrix's, and the number of the step seed the rounding of bf16 moments: with the same numbers at each
    step every element would err to its own side for ever.
    """
    C = new.t() @ old
    if config.moments == "adafactor":
        state["exp_avg_sq_row"].copy_(C.square() @ state["exp_avg_sq_row"])
        return
    beta1, beta2 = config.betas
    count = state["count"].clamp(min=1)  # before the first step the moments are 0 and stay so
    unbias1, unbias2 = 1 - beta1**count, 1 - beta2**count
    exp_avg, exp_avg_sq = load(config, state)
    mean = exp_avg / unbias1
    variance = exp_avg_sq / unbias2 - mean.square()
    turned = C @ mean
    seed = derive_seed(step, "rotation", name)  # others than those of the step that follows
    store(config, state, turned * unbias1, (C.square() @ variance + turned.square()).abs() * unbias2, seed)
