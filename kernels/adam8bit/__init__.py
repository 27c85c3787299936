"""Adam whose moments take one byte each (8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861).

One tensor is stepped at a time, and many small ones cost a launch each. An optimizer that lays them out in one flat
buffer, each starting at a multiple of 256 elements, steps them all in one call with the same result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from kernels.adam8bit import reference
from kernels.adam8bit.reference import EpsMode, hyper_parameters
from kernels.adam8bit.state import Adam8bitState
from kernels.backend import on_its_device, uses_triton
from kernels.rounding import check_key, round_to

__all__ = ["Adam8bitState", "adam8bit_", "adam8bit_direction"]


@on_its_device
@torch.no_grad()
def adam8bit_(
    param: Tensor,
    grad: Tensor,
    state: Adam8bitState,
    *,
    lr: float,
    betas: Sequence[float],
    eps: float,
    step: int,
    weight_decay: float = 0.0,
    eps_mode: EpsMode = "torch",
    key: int | None = None,
) -> None:
    """One step of AdamW (arXiv 1711.05101) on `param`, in place: param <- (1 - lr weight_decay) param - lr N.

    param and grad of any shape, fp32, bf16 or fp16; step counts from 1. N is what `adam8bit_direction` writes. The
    result is rounded to nearest even, or stochastically when `key` (32 bits; param in bf16) is given.
    A gradient that is not finite, or whose square is not, resets its element's moments to 0: N is 0 there.
    """
    _check(param, grad, state)
    check_key(key)
    if key is not None and param.dtype != torch.bfloat16:
        raise ValueError(f"stochastic rounding is for a bf16 parameter, not {param.dtype}")
    hyper = hyper_parameters(lr, betas, eps, step, weight_decay, eps_mode, grad.device)
    if param.numel() == 0:
        return
    if not uses_triton(param):
        new = reference.adam8bit(param, grad, state, hyper).view(1, -1)
        param.copy_(round_to(new, param.dtype, key).view_as(param))
        return
    from kernels.adam8bit.in_triton import launch_adam8bit

    launch_adam8bit(param, grad.contiguous(), state, hyper, direction=False, key=key)
    increment_version(param)


@on_its_device
@torch.no_grad()
def adam8bit_direction(
    grad: Tensor,
    state: Adam8bitState,
    out: Tensor,
    *,
    betas: Sequence[float],
    eps: float,
    step: int,
    eps_mode: EpsMode = "torch",
) -> None:
    """Write Adam's direction N to `out`, of the shape of grad; bias correction is in it, so a step is lr N.

    `torch`: N = (m / c1) / (sqrt(v) / sqrt(c2) + eps), with c = 1 - beta^step, as torch.optim.Adam. `galore`:
    N = sqrt(c2) / c1 * m / (sqrt(v) + eps), as Hugging Face's AdamW of old and the GaLore release (arXiv 2403.03507).
    """
    _check(out, grad, state)
    hyper = hyper_parameters(0.0, betas, eps, step, 0.0, eps_mode, grad.device)
    if out.numel() == 0:
        return
    if not uses_triton(out):
        out.copy_(reference.adam8bit_direction(grad, state, hyper))
        return
    from kernels.adam8bit.in_triton import launch_adam8bit

    launch_adam8bit(out, grad.contiguous(), state, hyper, direction=True)
    increment_version(out)


def _check(target: Tensor, grad: Tensor, state: Adam8bitState) -> None:
    if not target.shape == grad.shape == state.exp_avg.shape == state.exp_avg_sq.shape:
        shapes = [tuple(tensor.shape) for tensor in (target, grad, state.exp_avg)]
        raise ValueError(f"the shapes of the tensor, its gradient and its state differ: {shapes}")
    if not target.is_contiguous():
        raise ValueError("the tensor that 8-bit Adam writes to must be contiguous")
