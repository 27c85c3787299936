"""W minus a gradient whose rows or columns are scaled, and the limiter of its growth (arXiv 2412.05270)."""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from kernels.arguments import WEIGHT_DTYPES, check_matrix, check_same, hyper
from kernels.backend import on_its_device, uses_triton
from kernels.rounding import check_key
from kernels.scaled_update import in_torch, reference


@on_its_device
@torch.no_grad()
def limit_growth_(state: Tensor, G: Tensor, scaling: Tensor) -> Tensor:
    """scaling / limiter, so that |scaling G| / limiter grows by at most 1 % from call to call; one pass over G.

    The norm-growth limiter of Fira (arXiv 2410.01623, equation 8) and APOLLO (arXiv 2412.05270): limiter =
    max(|scaling G| / (state + 1e-8), 1.01) / 1.01, and `state` becomes |scaling G| / limiter, in place: 0-d fp32,
    infinity before the first call. A norm of at most 1e-8 leaves it as it was: it would shut out every later one.

    G (rows, cols) fp32 or bf16; scaling (rows, 1), (1, cols) or (1, 1), fp32. ValueError for other shapes or dtypes.
    """
    _check(G, scaling)
    if state.shape != () or state.dtype != torch.float32:
        raise ValueError(f"state is {state.dtype} {tuple(state.shape)}; it must be a 0-d fp32 tensor")
    check_same({"state": state, "G": G}, "device")
    if uses_triton(G) and G.numel():
        from kernels.scaled_update.in_triton import launch_limit_growth

        increment_version(state)
        return launch_limit_growth(state, G, scaling)
    limited, new = reference.limit_growth(state, G.float(), scaling)
    state.copy_(new)
    return limited


@on_its_device
@torch.no_grad()
def scaled_update_(
    W: Tensor,
    G: Tensor,
    scaling: Tensor,
    lr: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    *,
    key: int | None = None,
    decay_after: bool = False,
) -> None:
    """W <- (1 - lr weight_decay) W - lr scaling G in place, in one pass over W and G.

    W (rows, cols) and G fp32 or bf16; scaling (rows, 1), (1, cols) or (1, 1), fp32. `lr`, `weight_decay`: floats or 0-d
    tensors; nothing waits for the device. With a 32-bit `key`, a bf16 W is rounded stochastically by
    `kernels.rounding.random_bits`, else to nearest. `decay_after`: (1 - lr weight_decay) (W - lr scaling G).

    ValueError for shapes, dtypes or devices that do not fit, rows that are not contiguous, or a key with an fp32 W.
    """
    _check(G, scaling)
    check_matrix("W", W, G.shape, WEIGHT_DTYPES)
    check_same({"W": W, "G": G}, "device")
    check_key(key, W.dtype)
    if uses_triton(W) and W.numel():
        from kernels.scaled_update.in_triton import launch_scaled_update

        launch_scaled_update(W, G, scaling, hyper(lr, 1.0, weight_decay, device=W.device), key, decay_after)
        increment_version(W)
    else:
        in_torch.scaled_update_(W, G, scaling, lr, weight_decay, key, decay_after)


def _check(G: Tensor, scaling: Tensor) -> None:
    if G.ndim != 2:
        raise ValueError("G must be a matrix")
    check_matrix("G", G, G.shape, WEIGHT_DTYPES)
    shapes = ((G.shape[0], 1), (1, G.shape[1]), (1, 1))
    if tuple(scaling.shape) not in shapes or scaling.dtype != torch.float32:
        raise ValueError(
            f"scaling is {scaling.dtype} {tuple(scaling.shape)}; it must be fp32 of shape "
            f"{', '.join(map(str, shapes[:-1]))} or {shapes[-1]}"
        )
    check_same({"G": G, "scaling": scaling}, "device")
