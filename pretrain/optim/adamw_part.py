"""AdamW for whatever is not projected: embeddings, head, norms, factors and sparse values."""

import math

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from kernels.adam8bit import Adam8bitState, adam8bit_, adam8bit_direction
from kernels.adam8bit.reference import dequantise, quantise
from kernels.rounding import round_to
from model.linear.merging import Moment, Reset
from pretrain.optim.config import OwnConfig
from pretrain.optim.element import Element, State
from pretrain.optim.signs import signed

SMALLEST_8BIT = 4096
"""Smaller tensors keep fp32 moments, as in bitsandbytes."""

EMBEDDINGS = ("tok_embeddings.weight", "lm_head.weight")
"""Whose moments are `embedding_moments`."""


class AdamWPart(Element):
    """A parameter that takes AdamW."""

    def step(self, config: OwnConfig, gradient: Tensor, number: int, lr: float, key: int | None) -> None:
        decay = 0.0 if self.name.endswith("norm.weight") else config.weight_decay
        rate = lr * config.lr_ratio(self.name)
        adamw_step(config, self.parameter, gradient, self.state, number, rate, decay, key)

    def fresh_state(self, config: OwnConfig, device: torch.device) -> State:
        """Zero moments."""
        like = torch.empty(self.parameter.shape, dtype=self.parameter.dtype, device=device)
        wide = self.name in EMBEDDINGS and config.embedding_moments == "fp32"
        return init_adamw(config.model_copy(update={"moments": "fp32"}) if wide else config, like)

    def reset_moments(self, reset: Reset) -> None:
        """Put what `reset` makes of each moment, in fp32, in its place; 8-bit ones are rounded to nearest."""
        moments: tuple[tuple[Moment, bool], ...] = (("exp_avg", True), ("exp_avg_sq", False))
        for key, has_sign in moments:
            kept = self.state[key]
            if kept.dtype != torch.uint8:
                kept.copy_(reset(key, kept))
                continue
            absmax = self.state[f"{key}_absmax"]
            changed = reset(key, dequantise(kept, absmax, has_sign).view(kept.shape))
            codes, scales = quantise(changed.flatten(), has_sign)
            kept.copy_(codes.view(kept.shape))
            absmax.copy_(scales)


def init_adamw(config: OwnConfig, parameter: Tensor) -> State:
    """Zero moments."""
    if config.moments == "8bit" and parameter.numel() >= SMALLEST_8BIT:
        return dict(vars(Adam8bitState.zeros_for(parameter)))
    return {name: torch.zeros_like(parameter, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")}


def adamw_step(
    config: OwnConfig,
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    step: int,
    lr: float,
    weight_decay: float,
    key: int | None,
) -> None:
    """One step of AdamW in place, with decoupled decay before or after as `config.decay_after`; step counts from 1."""
    keep, plain = 1 - lr * weight_decay, not (config.cautious or config.grams)
    if plain and state["exp_avg"].dtype == torch.uint8:
        # The kernel decays first: keep (W - lr N) is keep W - (keep lr) N.
        rate, decay = (keep * lr, weight_decay / keep) if config.decay_after else (lr, weight_decay)
        adam8bit_(
            parameter, gradient, Adam8bitState(**state), lr=rate, betas=config.betas, eps=config.eps, step=step,
            weight_decay=decay, eps_mode=config.eps_mode, key=key,
        )  # fmt: skip
        return
    if plain and parameter.dtype == torch.float32 and not (weight_decay and config.decay_after):
        _fused(config, parameter, gradient, state, step, lr, weight_decay)
        return
    N = signed(config, _direction(config, gradient.float(), state, step), gradient)
    if config.decay_after:
        new = parameter.float().sub(N, alpha=lr).mul_(keep)
    else:
        new = parameter.float().mul(keep).sub_(N, alpha=lr)
    parameter.copy_(round_to(new.view(1, -1), parameter.dtype, key).view_as(parameter))


def _fused(
    config: OwnConfig, parameter: Tensor, gradient: Tensor, state: State, step: int, lr: float, decay: float
) -> None:
    """PyTorch's kernel, one pass, decay first.

    sqrt(c2) / (sqrt(v) + eps) is 1 / (sqrt(v) / sqrt(c2) + eps / sqrt(c2)).
    """
    beta1, beta2 = config.betas
    eps = config.eps if config.eps_mode == "torch" else config.eps / math.sqrt(1 - beta2**step)
    count = torch.tensor(float(step - 1), device=parameter.device)  # it adds one itself
    adamw(
        [parameter], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [count], fused=True, amsgrad=False,
        beta1=beta1, beta2=beta2, lr=lr, weight_decay=decay, eps=eps, maximize=False,
    )  # fmt: skip


def _direction(config: OwnConfig, gradient: Tensor, state: State, step: int) -> Tensor:
    if state["exp_avg"].dtype == torch.uint8:
        N = torch.empty_like(gradient)
        kept = Adam8bitState(**state)
        adam8bit_direction(gradient, kept, N, betas=config.betas, eps=config.eps, step=step, eps_mode=config.eps_mode)
        return N
    beta1, beta2 = config.betas
    root2, unbias1 = math.sqrt(1 - beta2**step), 1 - beta1**step
    m = state["exp_avg"].lerp_(gradient, 1 - beta1)
    v = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    if config.eps_mode == "torch":
        return (m / unbias1).div_(v.sqrt().div_(root2).add_(config.eps))
    return (m * (root2 / unbias1)).div_(v.sqrt().add_(config.eps))
