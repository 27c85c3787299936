"""Where tokens enter and leave the network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.linear_cross_entropy import linear_cross_entropy
from model.seeding import fill_normal


class Embedding(nn.Module):
    """One row of `weight` (vocab, dim) per token."""

    def __init__(self, vocab_size: int, dim: int, name: str, init_std: float):
        super().__init__()
        self.name = name
        self.init_std = init_std
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)

    def reset_parameters(self, seed: int) -> None:
        fill_normal(self.weight, self.init_std, seed, f"{self.name}.weight")


class OutputHead(nn.Module):
    """Logits, or the summed loss, from the last hidden state and `weight` (vocab, dim).

    The weight is used inside this module's own forward, because under ZeRO-3 DeepSpeed gathers weights around the
    forward of the module that owns them. A tied head owns none and is handed the embedding's: ZeRO 0 to 2 only.
    """

    weight: nn.Parameter | None

    def __init__(self, vocab_size: int, dim: int, name: str, init_std: float, tied: bool):
        super().__init__()
        self.name = name
        self.init_std = init_std
        self.register_parameter("weight", None if tied else nn.Parameter(torch.empty(vocab_size, dim)))

    def forward(self, hidden: Tensor, targets: Tensor | None, tied_weight: Tensor | None = None) -> Tensor:
        """fp32 logits [B, T, V] of hidden [B, T, D]; with targets [B, T] the summed negative log-likelihood (0-d)."""
        weight = self.weight if tied_weight is None else tied_weight
        assert weight is not None
        if targets is not None:
            return linear_cross_entropy(hidden, weight, targets)
        return F.linear(hidden, weight.to(hidden.dtype)).float()

    def reset_parameters(self, seed: int) -> None:
        if self.weight is not None:
            fill_normal(self.weight, self.init_std, seed, f"{self.name}.weight")
