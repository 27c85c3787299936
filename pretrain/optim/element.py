"""A parameter that is stepped whole, by itself."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pretrain.optim.config import OwnConfig

State = dict[str, Tensor]
"""Tensors of one parameter or matrix, by name: what a checkpoint holds of it."""


@dataclass
class Element(ABC):
    """A parameter that is no target of a matrix optimizer, or of an optimizer without any: embedding, head, norms,
    factors and sparse values. `state` is filled on its owner alone.
    """

    name: str
    parameter: nn.Parameter
    owner: int = 0
    state: State = field(default_factory=dict)

    @property
    def rounds(self) -> bool:
        """Whether it is kept in less than fp32."""
        return self.parameter.dtype != torch.float32

    @property
    def gradient(self) -> Tensor:
        """Summed over micro-steps, in the parameter's precision."""
        assert self.parameter.grad is not None, f"{self.name} received no gradient"
        return self.parameter.grad

    def cost(self, config: OwnConfig) -> float:
        """Cost of its steps to its owner."""
        return float(self.parameter.numel())

    @abstractmethod
    def step(self, config: OwnConfig, gradient: Tensor, number: int, lr: float, key: int | None) -> None:
        """One step in place; `number` counts from 1, `lr` is the run's learning rate."""

    @abstractmethod
    def fresh_state(self, config: OwnConfig, device: torch.device) -> State:
        """What it remembers before its first step."""
