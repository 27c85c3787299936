"""A matrix whose step is its gradient with rows or columns of RMS 1: SCALE's embedding and output head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.scaled_update import scaled_update_
from pretrain.optim.config import MatrixConfig, OwnConfig
from pretrain.optim.element import Element, State
from pretrain.optim.momentum import advance_momentum, init_momentum

SMALLEST_RMS = 1e-8
"""RMS that rows and columns count as at least, as released."""


@dataclass
class NormalisedPart(Element):
    """W <- (1 - lr' decay) W - lr' U, lr' = lr scale; U is the gradient, or its momentum, its vectors along `dim` at
    RMS 1 (SCALE, arXiv 2506.16659, algorithm 1).

    `dim` 1: each row, over the input dimension, as for a linear's weight; 0: each column, over all rows, which for an
    embedding is over the vocabulary. `momentum` is its decay rate, 0 for none.
    """

    dim: int = 1
    momentum: float = 0.0

    def step(self, config: OwnConfig, gradient: Tensor, number: int, lr: float, key: int | None) -> None:
        assert isinstance(config, MatrixConfig)
        G = advance_momentum(self.state, gradient, self.momentum) if self.momentum else gradient.contiguous()
        rate = lr * config.scale
        scaled_update_(self.parameter, G, inverse_rms(G, self.dim), rate, config.weight_decay, key=key)

    def fresh_state(self, config: OwnConfig, device: torch.device) -> State:
        rows, cols = self.parameter.shape
        return init_momentum(config.moments, (rows, cols), device) if self.momentum else {}


def inverse_rms(G: Tensor, dim: int) -> Tensor:
    """1 / RMS of the vectors of G (rows, cols) along `dim`, (rows, 1) or (1, cols), fp32."""
    norm = torch.linalg.vector_norm(G, dim=dim, keepdim=True, dtype=torch.float32)
    return norm.div_(G.shape[dim] ** 0.5).clamp_(min=SMALLEST_RMS).reciprocal_()
