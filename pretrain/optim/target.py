"""One matrix as the matrix optimizer keeps it: what it is, who owns it, and its state."""

from dataclasses import dataclass, field

from torch import Tensor

from pretrain.optim.accumulator import Accumulator
from pretrain.optim.basis import Basis
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
