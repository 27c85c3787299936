"""Products of matrices and what goes with them, in as few passes as BLAS allows."""

import torch
from torch import Tensor


def scaled_mm(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale * left @ right (rows, cols); beta = 0 ignores what is in the output's memory, NaN included."""
    out = torch.empty(left.shape[0], right.shape[1], dtype=left.dtype, device=left.device)
    return out.addmm_(left, right, beta=0, alpha=scale)


def add_product_(W: Tensor, P: Tensor, N: Tensor, decay: float, factor: float) -> None:
    """W <- decay W + factor P N for an fp32 W (rows, cols), P (rows, rank) and N (rank, cols) in one dtype.

    fp32 factors in one pass over W. The product of bf16 ones is summed in fp32 and comes rounded to bf16: half the
    time where the processor has bf16 instructions.
    """
    if P.dtype == W.dtype:
        W.addmm_(P, N, beta=decay, alpha=factor)
        return
    if decay != 1:
        W.mul_(decay)
    W.add_(torch.mm(P, N), alpha=factor)
