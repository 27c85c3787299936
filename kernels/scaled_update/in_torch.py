"""The scaled update in plain PyTorch."""

import torch
from torch import Tensor

from kernels.rounding import round_to
from kernels.scaled_update import reference


def scaled_update_(
    W: Tensor,
    G: Tensor,
    scaling: Tensor,
    lr: float | Tensor,
    weight_decay: float | Tensor,
    key: int | None,
    decay_after: bool,
) -> None:
    """Change an fp32 W in its own memory, a bf16 one by the definition in fp32, rounded once."""
    if W.dtype == torch.float32:
        decay = 1 - float(lr) * float(weight_decay)
        if decay != 1:
            W.mul_(decay)
        W.addcmul_(G.float(), scaling, value=-float(lr) * (decay if decay_after else 1.0))
    else:
        new = reference.scaled_update(W.float(), G.float(), scaling, lr, weight_decay, decay_after)
        W.copy_(round_to(new, W.dtype, key))
