"""Adam's moments of a projected gradient, kept in fp32, bf16, 8 bits or factored."""

import math

import torch
from torch import Tensor

from kernels.adam8bit import Adam8bitState, adam8bit_direction
from pretrain.optim.matrix_config import MatrixConfig

State = dict[str, Tensor]


def init_moments(config: MatrixConfig, shape: tuple[int, int], device: torch.device) -> State:
    """Zero moments of a tensor of `shape`."""
    if config.moments == "8bit":
        return dict(vars(Adam8bitState.zeros_for(torch.empty(shape, device=device))))
    if config.moments == "adafactor":
        return {
            "exp_avg_sq_row": torch.zeros(shape[0], device=device),
            "exp_avg_sq_col": torch.zeros(shape[1], device=device),
        }
    dtype = torch.bfloat16 if config.moments == "bf16" else torch.float32
    return {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("exp_avg", "exp_avg_sq")}


def direction(config: MatrixConfig, state: State, gradient: Tensor, step: int) -> tuple[Tensor, float]:
    """(N, c): Adam's direction is c N, with everything that depends on the step alone in c; changes `state`.

    eps_mode "galore": N = m / (sqrt(v) + eps), c = sqrt(1 - beta2^t) / (1 - beta1^t). "torch": N with both corrections
    inside, c = 1. `gradient` fp32; step counts from 1.
    """
    beta1, beta2 = config.betas
    root2, unbias1 = math.sqrt(1 - beta2**step), 1 - beta1**step
    if config.moments == "8bit":
        N = torch.empty_like(gradient)
        adam8bit_direction(
            gradient, Adam8bitState(**state), N, betas=config.betas, eps=config.eps, step=step, eps_mode=config.eps_mode
        )
        return (N, 1.0) if config.eps_mode == "torch" else (N * (unbias1 / root2), root2 / unbias1)
    assert config.moments != "adafactor"
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    m = exp_avg.float().lerp(gradient, 1 - beta1)
    v = exp_avg_sq.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
    if config.eps_mode == "torch":
        return (m / unbias1) / (v.sqrt() / root2 + config.eps), 1.0
    return m / (v.sqrt() + config.eps), root2 / unbias1
