"""Where a matrix that is projected is stored: what the optimizer reads, changes, and gets gradients from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.linear.int8 import Int8Linear


class Weight(ABC):
    """A matrix and the sum of its gradients since they were last let go."""

    device: torch.device
    rounds: bool
    """Whether it is kept in less than fp32."""
    grad: Tensor | None
    """Whole, shaped like the matrix."""

    @abstractmethod
    def on_gradient(self, work: Callable[[], None]) -> None:
        """Call `work` whenever a backward pass has added to `grad`."""

    @abstractmethod
    def unhook(self) -> None:
        """Let backward passes know nothing of the optimizer any more."""

    @abstractmethod
    def read(self) -> Tensor:
        """The matrix in fp32 or bf16; not to be written to."""

    @abstractmethod
    def changing(self, key: int | None) -> AbstractContextManager[tuple[Tensor, int | None]]:
        """Open the matrix for a change in place, with the key to round by: `key`, or None where closing it rounds."""


class FloatWeight(Weight):
    """A parameter."""

    def __init__(self, parameter: nn.Parameter):
        self.parameter, self.device = parameter, parameter.device
        self.rounds = parameter.dtype != torch.float32
        self._hook: RemovableHandle | None = None

    @property
    def grad(self) -> Tensor | None:
        return self.parameter.grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self.parameter.grad = value

    def on_gradient(self, work: Callable[[], None]) -> None:
        self._hook = self.parameter.register_post_accumulate_grad_hook(lambda _: work())

    def unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()

    def read(self) -> Tensor:
        return self.parameter.detach()

    @contextmanager
    def changing(self, key: int | None) -> Iterator[tuple[Tensor, int | None]]:
        yield self.parameter, key


class Int8Weight(Weight):
    """The codes of a linear, of which there is an fp32 copy while they change, and at no other time.

    Rounding depends on the key and an element's place in the matrix alone (`kernels.rounding`), so ranks that change it
    alike have the same codes.
    """

    rounds = True

    def __init__(self, linear: Int8Linear):
        self.linear, self.device = linear, linear.codes.device
        self.grad: Tensor | None = None
        self._work: Callable[[], None] | None = None
        linear.sink = self._take

    def on_gradient(self, work: Callable[[], None]) -> None:
        self._work = work

    def unhook(self) -> None:
        self._work = self.linear.sink = None

    def read(self) -> Tensor:
        return self.linear.dense_weight()

    @contextmanager
    def changing(self, key: int | None) -> Iterator[tuple[Tensor, int | None]]:
        weight = self.linear.dense_weight()
        yield weight, None
        self.linear.store(weight, key)

    def _take(self, gradient: Tensor) -> None:
        """Sums over micro-steps in fp32."""
        self.grad = gradient if self.grad is None else self.grad.float().add_(gradient)
        if self._work is not None:
            self._work()
