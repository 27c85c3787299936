"""One matrix as the matrix optimizer keeps it: what it is, who owns it, its projected gradient, basis and state."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.quant import Quantized, dequantize, quantize
from pretrain.optim.config import MatrixConfig
from pretrain.optim.matrix import Matrix
from pretrain.optim.refresh import AdaptiveGap
from pretrain.optim.rules.base import State
from pretrain.optim.weight import Weight


class Accumulator:
    """R (rank, n) fp32, on the device or in host memory.

    On a GPU the host memory is pinned, and copies in both directions are queued on the computation's stream: in order,
    with nobody waiting.
    """

    def __init__(self, host: bool = False):
        self.host, self.device = host, torch.device("cpu")
        self.empty = True
        self._kept: Tensor | None = None

    def add(self, R: Tensor) -> None:
        self.write(R if self.empty else self.read().add_(R))

    def read(self) -> Tensor:
        """R on the device: what is kept itself where that is there."""
        assert self._kept is not None
        assert not self.empty
        return self._kept.to(self.device, non_blocking=True)

    def write(self, R: Tensor) -> None:
        self.empty, self.device = False, R.device
        if not self.host:
            self._kept = R
            return
        if self._kept is None:  # for good: pinning takes time
            self._kept = torch.empty(R.shape, pin_memory=self.device.type == "cuda")
        self._kept.copy_(R, non_blocking=True)

    def clear(self) -> None:
        self.empty = True
        if not self.host:
            self._kept = None


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


@dataclass
class Target:
    """A matrix that is projected. `state` is filled on its owner alone, all else on every rank."""

    name: str
    weight: Weight
    matrix: Matrix
    index: int
    sum: Accumulator = field(default_factory=Accumulator)
    """The projected gradient."""
    owner: int = 0
    basis: Basis | None = None
    gap: AdaptiveGap | None = None
    state: State = field(default_factory=dict)
    shared: State = field(default_factory=dict)

    @property
    def P(self) -> Tensor | None:
        """(m, rank) fp32."""
        return None if self.basis is None else self.basis.read()

    @property
    def whole(self) -> Tensor:
        """The gradient summed over micro-steps, (m, n), as it came."""
        assert self.weight.grad is not None, f"{self.name} received no gradient"
        return self.matrix.left_form(self.weight.grad)

    @property
    def rounds(self) -> bool:
        """Whether it is kept in less than fp32."""
        return self.weight.rounds

    def cost(self, config: MatrixConfig) -> float:
        """Cost of its steps to its owner: the projected state, and the refresh spread over its gap."""
        matrix = self.matrix
        return matrix.rank * matrix.n + matrix.m * matrix.n * matrix.rank / config.update_proj_gap
