"""What 8-bit Adam remembers of a tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.adam8bit.codebook import ZERO_SIGNED

BLOCK = 256
"""Consecutive elements, in flat order, that share a scale. Part of the checkpoint's format."""

SMALLEST_SCALE = 2.0**-126
"""The smallest normal fp32 number: the reciprocal of a smaller one may be infinite."""


@dataclass
class Adam8bitState:
    """Moments as codes of the dynamic maps, times the largest magnitude of each block of 256 elements.

    exp_avg and exp_avg_sq have the tensor's shape, uint8; their absmax (ceil(n / 256),) fp32. 2.03 bytes per element.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    exp_avg_absmax: Tensor
    exp_avg_sq_absmax: Tensor

    @classmethod
    def zeros_for(cls, tensor: Tensor) -> "Adam8bitState":
        blocks = -(-tensor.numel() // BLOCK)
        return cls(
            exp_avg=torch.full(tensor.shape, ZERO_SIGNED, dtype=torch.uint8, device=tensor.device),
            exp_avg_sq=torch.zeros(tensor.shape, dtype=torch.uint8, device=tensor.device),
            exp_avg_absmax=torch.zeros(blocks, device=tensor.device),
            exp_avg_sq_absmax=torch.zeros(blocks, device=tensor.device),
        )
