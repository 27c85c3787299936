"""What every rule offers: from a gradient to an update of one matrix."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kernels.low_rank_update import low_rank_update_
from pretrain.optim.adamw_part import AdamWPart
from pretrain.optim.config import MatrixConfig
from pretrain.optim.element import Element, State
from pretrain.optim.matrix import Matrix, Side


@dataclass(frozen=True)
class Step:
    """What is the same for all matrices at one step."""

    number: int
    """Counts applied updates, this one included: 1, 2, ..."""
    lr: float
    refreshed: bool
    """Whether this matrix got a new basis at this step."""
    products: torch.dtype
    """In which products of whole matrices are computed: fp32, or bf16 where the run computes in bf16."""
    key: int | None
    """32 bits for stochastic rounding of this matrix at this step; None rounds to nearest."""
    weight: Callable[[], Tensor]
    """Reads the matrix as it is before this step, for `direct`."""
    run_lr: float
    """The run's learning rate, where `lr` is this matrix's: `factor_lr_ratio` tells them apart."""


@dataclass(frozen=True)
class WeightUpdate:
    """What every rank is given to change one weight, besides the weight itself."""

    matrix: Matrix
    message: State
    """What the owner's `direct` made."""
    shared: State
    """The state that every rank keeps."""
    step: Step
    basis: Tensor | None
    """(m, rank) fp32, where the optimizer keeps one."""
    gradient: Tensor | None
    """(m, n) fp32 in left form, for a rule with `gradient_everywhere`."""

    @property
    def P(self) -> Tensor:
        """The basis of a rule that has one."""
        assert self.basis is not None
        return self.basis

    @property
    def G(self) -> Tensor:
        """The gradient of a rule that asks for it on every rank."""
        assert self.gradient is not None
        return self.gradient


class Rule(ABC):
    """Two phases: the matrix's owner turns the gradient into a small message; every rank applies the message.

    A rule is made once per optimizer from its configuration and keeps nothing of its own: all that it remembers of a
    matrix is in that matrix's State, on the owner, and in `shared` state, on every rank.
    """

    Config: ClassVar[type[MatrixConfig]]
    """What it is made from; `name` is its own in PRESETS."""
    needs: ClassVar[Literal["projected", "full"]]
    """projected: `direct` is given R, the projected gradient, summed over micro-steps and ranks. full: the whole
    gradient, likewise summed."""
    gradient_everywhere: ClassVar[bool] = False
    """For `full`: `apply` reads the gradient, so every rank gets the sum, not the owner alone."""
    uses_basis: ClassVar[bool] = True
    """Whether the optimizer keeps a basis "P" for it by its projector and refresh schedule."""
    exact_basis: ClassVar[bool] = False
    """Whether "P" must be orthonormal to rounding: where the gradient outside of the basis trains too."""
    square_side: ClassVar[Side] = "right"
    """The side that proj_type std projects of a square matrix."""
    keeps_moments: ClassVar[bool] = True
    """Whether it keeps anything of a matrix as `moments` says; else that is for what takes AdamW alone."""

    def __init__(self, config: MatrixConfig):
        self.config = config

    @abstractmethod
    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        """The owner's fresh state."""

    def init_shared(self, matrix: Matrix, device: torch.device) -> State:
        """State that every rank keeps, and changes alike in `apply`."""
        return {}

    @abstractmethod
    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        """The message (fp32), from the gradient in left form: R (rank, n) or G (m, n), fp32; changes `state`."""

    @abstractmethod
    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        """Shapes of what `direct` returns, so that the other ranks can receive it."""

    @abstractmethod
    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        """Change `weight` (fp32 or bf16, contiguous) in place."""

    def element(self, name: str, parameter: nn.Parameter) -> Element:
        """How a parameter that is no target is stepped: by AdamW, unless the method has a way of its own."""
        return AdamWPart(name, parameter)

    def change_basis(  # noqa: B027
        self, matrix: Matrix, state: State, old: Tensor, new: Tensor, step: int
    ) -> None:
        """The basis was refreshed at `step` (1, 2, ...): `rotate_moments` asks to carry the moments over."""


def project(P: Tensor, G: Tensor, products: torch.dtype) -> Tensor:
    """R = P^T G (rank, n), multiplied in `products`, as fp32."""
    return (P.to(products).t() @ G.to(products)).float()


def apply_low_rank(weight: Tensor, P: Tensor, N: Tensor, config: MatrixConfig, update: WeightUpdate) -> None:
    """weight -= lr scale P N in left form, then decoupled decay, in one pass over the weight.

    With Adafactor's moments the decay comes before the update, as in the GaLore release.
    """
    step, after = update.step, config.moments != "adafactor"
    P, N = P.to(step.products), N.to(step.products)
    left, right = (P, N) if update.matrix.side == "left" else (N.t().contiguous(), P.t().contiguous())
    low_rank_update_(weight, left, right, step.lr, config.scale, config.weight_decay, key=step.key, decay_after=after)
