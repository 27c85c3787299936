"""One parameter as the matrix optimizer keeps it: what it is, who owns it, and its state."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pretrain.optim.basis import Basis
from pretrain.optim.element import element_step, init_element
from pretrain.optim.matrix import Matrix
from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.refresh import AdaptiveGap
from pretrain.optim.rules.base import State
from pretrain.optim.weight import Weight


@dataclass
class Target:
    """A matrix that is projected. `state` is filled on its owner alone, all else on every rank."""

    name: str
    weight: Weight
    matrix: Matrix
    index: int
    owner: int = 0
    basis: Basis | None = None
    gap: AdaptiveGap | None = None
    state: State = field(default_factory=dict)
    shared: State = field(default_factory=dict)
    projected: Tensor | None = None
    """R summed over the micro-steps so far."""

    @property
    def P(self) -> Tensor | None:
        """(m, rank) fp32."""
        return None if self.basis is None else self.basis.read()

    @property
    def rounds(self) -> bool:
        """Whether it is kept in less than fp32."""
        return self.weight.rounds

    def cost(self, config: MatrixConfig) -> float:
        """Of its steps to its owner: the projected state, and the refresh spread over its gap."""
        matrix = self.matrix
        return matrix.rank * matrix.n + matrix.m * matrix.n * matrix.rank / config.update_proj_gap


@dataclass
class Element:
    """A parameter that takes AdamW. `state` is filled on its owner alone."""

    name: str
    parameter: nn.Parameter
    owner: int = 0
    state: State = field(default_factory=dict)

    @property
    def rounds(self) -> bool:
        """Whether it is kept in less than fp32."""
        return self.parameter.dtype != torch.float32

    def step(self, config: MatrixConfig, gradient: Tensor, number: int, lr: float, key: int | None) -> None:
        decay = 0.0 if self.name.endswith("norm.weight") else config.weight_decay
        rate = lr * (config.factor_lr_ratio if self.name.endswith(".B") else 1.0)
        element_step(config, self.parameter, gradient, self.state, number, rate, decay, key)

    def fresh_state(self, config: MatrixConfig, device: torch.device) -> State:
        return init_element(config, torch.empty(self.parameter.shape, dtype=self.parameter.dtype, device=device))
