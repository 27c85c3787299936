"""RMSNorm (arXiv 1910.07467)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; the mean square is taken in fp32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        # One fused kernel on a GPU, which needs both in one dtype.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        self.weight.fill_(1.0)
