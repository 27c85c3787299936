"""Where a matrix's projected gradient is summed over micro-steps."""

import torch
from torch import Tensor


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
