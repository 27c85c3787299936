"""What 8-bit Adam remembers of a tensor, and the 256 values that a byte of it can stand for.

The values are the dynamic maps of bitsandbytes (arXiv 2110.02861, section 1.3): seven decades between 1e-7 and 1, each
cut into equal intervals represented by their midpoints: 1, 2, 4, ... 64 in the signed map, twice as many in the
unsigned one. With 0 and 1 that is 256 values; -1 is not among them.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 256
"""Consecutive elements, in flat order, that share a scale. Part of the checkpoint's format."""

SMALLEST_SCALE = 2.0**-126
"""The smallest normal fp32 number: the reciprocal of a smaller one may be infinite."""


DECADES = 7

ZERO_SIGNED = 127
"""The code of 0 in the signed map; in the unsigned one it is 0."""


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


def dynamic_map(signed: bool) -> Tensor:
    """The values (256,) fp32 in ascending order, equal bit for bit to those of bitsandbytes."""
    values = [0.0, 1.0]
    for decade in range(DECADES):
        intervals = 2**decade if signed else 2 ** (decade + 1)
        edges = torch.linspace(0.1, 1.0, intervals + 1, dtype=torch.float32)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - DECADES + 1)).tolist()
        values += middles
        if signed:
            values += [-value for value in middles]
    return torch.tensor(sorted(values), dtype=torch.float32)


@lru_cache(maxsize=8)
def codebook(signed: bool, device: torch.device) -> Tensor:
    """[2, 256]: the value of each code, and the midpoint between it and the next, above which the next one is nearer.

    The last midpoint is infinite. Made on the CPU for every device, so that all have the same bits.
    """
    values = dynamic_map(signed)
    midpoints = torch.cat([(values[:-1] + values[1:]) * 0.5, torch.tensor([torch.inf])])
    return torch.stack([values, midpoints]).to(device)
