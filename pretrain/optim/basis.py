"""A basis as it is kept: in fp32, bf16, or codes of 8 or 4 bits (Q-GaLore, arXiv 2407.08296, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.quant import Quantized, dequantize, quantize
from pretrain.optim.rules.base import State

GROUP = 256
"""Elements of the flattened basis that share a scale and a zero point."""

BITS = {"int8": 8, "int4": 4}


class Basis:
    """P (m, rank), contiguous, as `projection` (optimizer.projection) keeps it. Codes of 4 bits are two to a byte.

    `tensors` is what a checkpoint holds, by name.
    """

    def __init__(self, P: Tensor, projection: str):
        self.shape, self.projection = P.shape, projection
        self.tensors: State = {}
        self.write(P)

    def read(self) -> Tensor:
        """P in fp32: what is kept itself where that is fp32."""
        if self.projection not in BITS:
            return self.tensors["P"].float()
        codes, scales, zeros = (self.tensors[f"P_{part}"] for part in ("codes", "scales", "zeros"))
        q = Quantized(codes, scales, zeros, (len(codes), GROUP), BITS[self.projection], GROUP)
        return dequantize(q, torch.float32).flatten()[: self.shape.numel()].view(self.shape)

    def write(self, P: Tensor) -> None:
        """Keep P (m, rank) fp32, rounded to nearest."""
        if self.projection not in BITS:
            self.tensors["P"] = P.to(torch.bfloat16 if self.projection == "bf16" else torch.float32).contiguous()
            return
        flat = F.pad(P.flatten(), (0, -P.numel() % GROUP))
        q = quantize(flat.view(-1, GROUP), BITS[self.projection], GROUP)
        self.tensors |= {"P_codes": q.codes, "P_scales": q.scales, "P_zeros": q.zeros}
