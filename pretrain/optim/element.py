"""AdamW for whatever is not projected: embeddings, head, norms, factors and sparse values."""

import math

import torch
from torch import Tensor

from kernels.adam8bit import Adam8bitState, adam8bit_
from kernels.rounding import round_to
from pretrain.optim.matrix_config import MatrixConfig

State = dict[str, Tensor]

SMALLEST_8BIT = 4096
"""Smaller tensors keep fp32 moments, as in bitsandbytes."""


def init_element(config: MatrixConfig, parameter: Tensor) -> State:
    """Zero moments."""
    if config.moments == "8bit" and parameter.numel() >= SMALLEST_8BIT:
        return dict(vars(Adam8bitState.zeros_for(parameter)))
    return {name: torch.zeros_like(parameter, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")}


def element_step(
    config: MatrixConfig,
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    step: int,
    lr: float,
    weight_decay: float,
    key: int | None,
) -> None:
    """One step of AdamW in place, decoupled decay after the update as in the GaLore release; step counts from 1."""
    if state["exp_avg"].dtype == torch.uint8:
        adam8bit_(
            parameter, gradient, Adam8bitState(**state), lr=lr, betas=config.betas, eps=config.eps, step=step,
            weight_decay=weight_decay, eps_mode=config.eps_mode, key=key,
        )  # fmt: skip
        return
    beta1, beta2 = config.betas
    root2, unbias1 = math.sqrt(1 - beta2**step), 1 - beta1**step
    gradient = gradient.float()
    m = state["exp_avg"].lerp_(gradient, 1 - beta1)
    v = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    if config.eps_mode == "torch":
        size, denominator = lr / unbias1, v.sqrt().div_(root2).add_(config.eps)
    else:
        size, denominator = lr * root2 / unbias1, v.sqrt().add_(config.eps)
    new = parameter.float().addcdiv_(m, denominator, value=-size) if parameter.dtype != torch.float32 else None
    if new is None:
        parameter.addcdiv_(m, denominator, value=-size).mul_(1 - lr * weight_decay)
    else:
        parameter.copy_(round_to(new.mul_(1 - lr * weight_decay).view(1, -1), parameter.dtype, key).view_as(parameter))
