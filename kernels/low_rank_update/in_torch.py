"""The low-rank weight update in plain PyTorch."""

import torch
from torch import Tensor

from kernels.low_rank_update import reference
from kernels.products import add_product_
from kernels.rounding import round_to


def low_rank_update_(
    W: Tensor,
    P: Tensor,
    N: Tensor,
    lr: float | Tensor,
    scale: float | Tensor,
    weight_decay: float | Tensor,
    key: int | None,
    decay_after: bool,
) -> None:
    """Change an fp32 W by products of BLAS in its memory, a bf16 one by the definition in fp32, rounded once."""
    if W.dtype == torch.float32:
        decay = 1 - float(lr) * float(weight_decay)
        add_product_(W, P, N, decay, -float(lr) * float(scale) * (decay if decay_after else 1.0))
    else:
        new = reference.low_rank_update(W.float(), P.float(), N.float(), lr, scale, weight_decay, decay_after)
        W.copy_(round_to(new, W.dtype, key))
