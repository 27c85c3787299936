"""What every support offers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from kernels.eight_bit_linear import EightBit
from model.errors import UserError

View = TypeVar("View")


class BaseSupport(nn.Module, ABC):
    """Which entries of a matrix (out, in) exist, as buffers, and the linear that uses them.

    A member's constructor takes (density, in_features, out_features, name); `name` is the module's full name in the
    model and seeds the draw.
    """

    LAYOUT: ClassVar[str]
    """The order of the values; recorded in checkpoints."""
    MAY_BUILD: ClassVar[bool] = False
    """Whether a Choice says how the linear computes, and it may build a dense W."""

    def __init__(self, in_features: int, out_features: int, values_shape: tuple[int, ...], name: str):
        super().__init__()
        self.shape = (out_features, in_features)
        self.values_shape = values_shape
        self.name = name
        self._view: tuple[Tensor, int, Any] | None = None

    @staticmethod
    @abstractmethod
    def count(density: float, in_features: int, out_features: int) -> int:
        """Count the sparse entries of an (out, in) matrix."""

    @abstractmethod
    def linear(
        self, x: Tensor, A: Tensor, B: Tensor, values: Tensor, scale: float, eight_bit: EightBit | None = None
    ) -> Tensor:
        """Compute y (..., out) = x W^T with W = scale B A + S, where it is built with products in eight bits."""

    @abstractmethod
    def add_to(self, dense: Tensor, values: Tensor) -> Tensor:
        """Add S to `dense` (out, in) in place, and return it."""

    @abstractmethod
    def reset_parameters(self, seed: int) -> None:
        """Draw from (seed, name)."""

    def view_of(self, buffer: Tensor, make: Callable[[], View]) -> View:
        """Return what `make` builds of the buffers, kept until `buffer` is another tensor or has new contents."""
        if self._view is None or self._view[0] is not buffer or self._view[1] != buffer._version:
            self._view = (buffer, buffer._version, make())
        return self._view[2]

    @abstractmethod
    def _check(self) -> None:
        """ValueError when the buffers describe no support."""

    def check(self) -> None:
        """UserError unless every entry lies in the matrix, once and in order: kernels write where it says."""
        try:
            self._check()
        except ValueError as error:
            raise UserError(f"{self.name}: {error}; the checkpoint is damaged") from None


def check_supports(model: nn.Module) -> None:
    """UserError when a support that was read is none."""
    for module in model.modules():
        if isinstance(module, BaseSupport):
            module.check()
