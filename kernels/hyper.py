"""Hyper-parameters that change from step to step, as kernels take them: in the device's memory, not as arguments."""

import torch
from torch import Tensor


def hyper(*values: float | Tensor, device: torch.device) -> Tensor:
    """`values`, each a float or a 0-d tensor, as one fp32 tensor (len(values),) on `device`.

    The host does not wait for the device (a copy from its memory would make it), so it may be captured in a CUDA graph.
    """
    filled = torch.empty(len(values), dtype=torch.float32, device=device)
    for slot, value in zip(filled, values, strict=True):
        slot.fill_(value)
    return filled
