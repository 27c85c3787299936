"""The weight update of GaLore's family: a projected step back in full size, in one pass (arXiv 2403.03507)."""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from kernels.arguments import WEIGHT_DTYPES, check_matrix, check_same, hyper
from kernels.backend import on_its_device, uses_triton
from kernels.low_rank_update import in_torch
from kernels.rounding import check_key


@on_its_device
@torch.no_grad()
def low_rank_update_(
    W: Tensor,
    P: Tensor,
    N: Tensor,
    lr: float | Tensor,
    scale: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    *,
    key: int | None = None,
    decay_after: bool = False,
) -> None:
    """W <- (1 - lr weight_decay) W - lr scale P N in place, reading and writing W once.

    The step of GaLore (arXiv 2403.03507, algorithm 1). W (rows, cols) fp32 or bf16; P (rows, rank), N (rank, cols) both
    fp32 or both bf16. For a projection from the right, P is the low-rank step (rows, rank) and N the projector (rank,
    cols). fp32 factors are multiplied in fp32, sums are fp32 always. (Without a GPU the product of bf16 factors is
    rounded to bf16 before it is added to an fp32 W.)

    `lr`, `scale`, `weight_decay`: floats or 0-d tensors; nothing waits for the device. With a 32-bit `key`, a bf16 W is
    rounded stochastically by `kernels.rounding.random_bits`, else to nearest. `decay_after` decays the update too, as
    GaLore's code does: W <- (1 - lr weight_decay) (W - lr scale P N).

    ValueError for shapes, dtypes or devices that do not fit, rows that are not contiguous, or a key with an fp32 W.
    """
    _check(W, P, N, key)
    if not W.numel():
        return
    if uses_triton(W):
        from kernels.low_rank_update.in_triton import launch_low_rank_update

        launch_low_rank_update(W, P, N, hyper(lr, scale, weight_decay, device=W.device), key, decay_after)
        increment_version(W)
    else:
        in_torch.low_rank_update_(W, P, N, lr, scale, weight_decay, key, decay_after)


def _check(W: Tensor, P: Tensor, N: Tensor, key: int | None) -> None:
    if not W.ndim == P.ndim == N.ndim == 2:
        raise ValueError("W, P and N must be matrices")
    (rows, cols), rank = W.shape, P.shape[1]
    for name, matrix, shape in (("W", W, (rows, cols)), ("P", P, (rows, rank)), ("N", N, (rank, cols))):
        check_matrix(name, matrix, shape, WEIGHT_DTYPES)
    check_same({"P": P, "N": N}, "dtype")
    check_same({"W": W, "P": P, "N": N}, "device")
    check_key(key, W.dtype)
