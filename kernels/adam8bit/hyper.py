"""Adam's hyper-parameters as the kernel reads them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels.hyper import hyper

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
