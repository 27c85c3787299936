"""The definition of 8-bit Adam: dequantise, an fp32 step, quantise."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels.adam8bit.state import BLOCK, SMALLEST_SCALE, ZERO_SIGNED, Adam8bitState, codebook
from kernels.arguments import hyper

EpsMode = Literal["torch", "galore"]


def hyper_parameters(
    lr: float,
    betas: Sequence[float],
    eps: float,
    step: int,
    weight_decay: float,
    eps_mode: EpsMode,
    device: torch.device,
) -> Tensor:
    """beta1, 1 - beta1, beta2, 1 - beta2, numerator, denominator, eps, lr, decay (9,) fp32 on `device`.

    The direction is numerator * exp_avg / (denominator * sqrt(exp_avg_sq) + eps), the update
    decay * parameter - lr * direction. Cached: the tensors of a parameter group share them in a step.
    """
    beta1, beta2 = betas
    return _hyper_parameters(lr, beta1, beta2, eps, step, weight_decay, eps_mode, device)


@lru_cache(maxsize=32)
def _hyper_parameters(
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    weight_decay: float,
    eps_mode: EpsMode,
    device: torch.device,
) -> Tensor:
    if eps_mode not in get_args(EpsMode):
        raise ValueError(f"eps_mode is {eps_mode!r}; it is torch or galore")
    if not eps > 0:
        raise ValueError(f"eps is {eps}; it must be positive, because an exp_avg_sq of 0 is common in 8 bits")
    if step < 1:
        raise ValueError(f"step is {step}; the first one is 1")
    correction1, correction2 = 1 - beta1**step, (1 - beta2**step) ** 0.5
    if eps_mode == "torch":
        numerator, denominator = 1 / correction1, 1 / correction2
    else:
        numerator, denominator = correction2 / correction1, 1.0
    decay = 1 - lr * weight_decay
    return hyper(beta1, 1 - beta1, beta2, 1 - beta2, numerator, denominator, eps, lr, decay, device=device)


def dequantise(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """The fp32 values (n,) of `codes`, whose blocks have the scales `absmax` (ceil(n / 256),)."""
    values = codebook(signed, codes.device)[0][codes.flatten().int()]
    return values * absmax.repeat_interleave(BLOCK)[: values.numel()]


def quantise(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """The nearest codes (n,) uint8 of fp32 `values` (n,), and absmax; a tie takes the lower code.

    A negative value never becomes 0, which bitsandbytes counts as positive: like its CUDA kernel, this stores the
    negative value next to 0, so exp_avg keeps its sign. A block whose scale is below
    SMALLEST_SCALE becomes 0 all over.
    """
    n = values.numel()
    blocks = torch.nn.functional.pad(values, (0, -n % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(1) if n else values.new_zeros(0)
    inverse = 1 / torch.where(absmax >= SMALLEST_SCALE, absmax, 1.0)
    relative = blocks * inverse.unsqueeze(1)
    codes = torch.bucketize(relative, codebook(signed, values.device)[1, :-1], out_int32=True)
    if signed:
        codes -= ((codes == ZERO_SIGNED) & (relative < 0)).int()
    return codes.flatten()[:n].to(torch.uint8), absmax


def adam8bit_direction(grad: Tensor, state: Adam8bitState, hyper: Tensor) -> Tensor:
    """Advance `state` by `grad` and return the direction, fp32, from the moments before they are quantised.

    `hyper` is what `hyper_parameters` returns. A gradient whose square is not finite resets its element's moments to 0.
    """
    beta1, one_minus_beta1, beta2, one_minus_beta2, numerator, denominator, eps = hyper[:7]
    g = grad.flatten().float()
    finite = g * g < torch.inf
    g = torch.where(finite, g, 0.0)
    exp_avg = beta1 * dequantise(state.exp_avg, state.exp_avg_absmax, True) + one_minus_beta1 * g
    exp_avg_sq = beta2 * dequantise(state.exp_avg_sq, state.exp_avg_sq_absmax, False) + one_minus_beta2 * (g * g)
    exp_avg, exp_avg_sq = torch.where(finite, exp_avg, 0.0), torch.where(finite, exp_avg_sq, 0.0)
    for values, codes, scales, signed in (
        (exp_avg, state.exp_avg, state.exp_avg_absmax, True),
        (exp_avg_sq, state.exp_avg_sq, state.exp_avg_sq_absmax, False),
    ):
        new_codes, new_scales = quantise(values, signed)
        codes.copy_(new_codes.view_as(codes))
        scales.copy_(new_scales)
    root = exp_avg_sq.double().sqrt().float()  # rounded correctly, which fp32 sqrt is not on a CPU
    return (numerator * exp_avg / (denominator * root + eps)).view_as(grad)


def adam8bit(param: Tensor, grad: Tensor, state: Adam8bitState, hyper: Tensor) -> Tensor:
    """The new fp32 value of `param`, not rounded to its type; advances `state`."""
    lr, decay = hyper[7:]
    return decay * param.float() - lr * adam8bit_direction(grad, state, hyper)
