"""The low-rank weight update as optimizers call it."""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from kernels.backend import on_its_device, uses_triton
from kernels.checks import check_matrix, check_same
from kernels.hyper import hyper
from kernels.low_rank_update import reference
from kernels.low_rank_update.cpu import add_product_
from kernels.quant import Quantized, dequantize
from kernels.quant.reference import quantize
from kernels.rounding import check_key, round_to

DTYPES = (torch.float32, torch.bfloat16)


@on_its_device
@torch.no_grad()
def low_rank_update_(
    W: Tensor | Quantized,
    P: Tensor | Quantized,
    N: Tensor | Quantized,
    lr: float | Tensor,
    scale: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    *,
    key: int | None = None,
    decay_after: bool = False,
) -> None:
    """W <- (1 - lr weight_decay) W - lr scale P N in place, reading and writing W once.

    The step of GaLore (arXiv 2403.03507, algorithm 1) and Q-GaLore (arXiv 2407.08296). W (rows, cols) fp32, bf16, or
    quantised to 8 bits, whose groups get a new range; P (rows, rank), N (rank, cols) both fp32 or both bf16, or one of
    them quantised and taken in the other's dtype. For a projection from the right, P is the low-rank step (rows, rank)
    and N the projector (rank, cols). fp32 factors are multiplied in fp32, sums are fp32 always. (Without a
    GPU the product of bf16 factors is rounded to bf16 before it is added to an fp32 W.)

    `lr`, `scale`, `weight_decay`: floats or 0-d tensors; nothing waits for the device. With a 32-bit `key`, a bf16 or
    quantised W is rounded stochastically by `kernels.rounding.random_bits`, else to nearest. `decay_after` decays the
    update too, as GaLore's code does: W <- (1 - lr weight_decay) (W - lr scale P N).

    ValueError for shapes, dtypes or devices that do not fit, rows that are not contiguous, or a key with an fp32 W.
    """
    _check(W, P, N, key)
    if not (W.codes if isinstance(W, Quantized) else W).numel():
        return
    if not uses_triton(W.codes if isinstance(W, Quantized) else W):
        _update_in_pytorch(W, P, N, lr, scale, weight_decay, key, decay_after)
        return
    from kernels.low_rank_update.kernel import launch_low_rank_update, launch_low_rank_update_quantized

    parameters = hyper(lr, scale, weight_decay, device=W.device)
    if isinstance(W, Quantized):
        launch_low_rank_update_quantized(W, P, N, parameters, key, decay_after)
    else:
        launch_low_rank_update(W, P, N, parameters, key, decay_after)
        increment_version(W)


def _check(W: Tensor | Quantized, P: Tensor | Quantized, N: Tensor | Quantized, key: int | None) -> None:
    if not len(W.shape) == len(P.shape) == len(N.shape) == 2:
        raise ValueError("W, P and N must be matrices")
    (rows, cols), rank = W.shape, P.shape[1]
    for name, matrix, shape in (("W", W, (rows, cols)), ("P", P, (rows, rank)), ("N", N, (rank, cols))):
        if isinstance(matrix, Quantized):
            matrix.check(name, shape)
        else:
            check_matrix(name, matrix, shape, DTYPES)
    if isinstance(W, Quantized) and W.bits != 8:
        raise ValueError(f"W has {W.bits} bits; a weight that is updated needs 8")
    if isinstance(W, Quantized) and isinstance(N, Quantized) and W.group > N.group:
        raise ValueError(f"W's groups of {W.group} exceed N's of {N.group}; quantise N in groups of at least W's")
    if isinstance(P, Quantized) and isinstance(N, Quantized):
        raise ValueError("P and N are both quantised; only the projector may be")
    if isinstance(P, Tensor) and isinstance(N, Tensor):
        check_same({"P": P, "N": N}, "dtype")
    check_same({"W": W, "P": P, "N": N}, "device")
    check_key(key)
    if key is not None and isinstance(W, Tensor) and W.dtype == torch.float32:
        raise ValueError("W is fp32, which is not rounded stochastically; leave out the key")


def _update_in_pytorch(
    W: Tensor | Quantized,
    P: Tensor | Quantized,
    N: Tensor | Quantized,
    lr: float | Tensor,
    scale: float | Tensor,
    weight_decay: float | Tensor,
    key: int | None,
    decay_after: bool,
) -> None:
    dtype = next(F.dtype for F in (P, N) if isinstance(F, Tensor))
    left, right = (dequantize(F, dtype) if isinstance(F, Quantized) else F for F in (P, N))
    if isinstance(W, Tensor) and W.dtype == torch.float32:
        decay = 1 - float(lr) * float(weight_decay)
        add_product_(W, left, right, decay, -float(lr) * float(scale) * (decay if decay_after else 1.0))
        return
    old = dequantize(W, torch.float32) if isinstance(W, Quantized) else W.float()
    new = reference.low_rank_update(old, left.float(), right.float(), lr, scale, weight_decay, decay_after)
    if isinstance(W, Quantized):
        q = quantize(new, 8, W.group, key)
        W.codes.copy_(q.codes)
        W.scales.copy_(q.scales)
        W.zeros.copy_(q.zeros)
    else:
        W.copy_(round_to(new, W.dtype, key))
