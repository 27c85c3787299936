"""What every linear offers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.eight_bit_linear import EightBit, eight_bit_linear
from kernels.sparse_low_rank_linear.choice import Choice
from model.seeding import fill_uniform


class BaseLinear(nn.Module, ABC):
    """A linear map without bias from in_features to out_features, one of the seven projections of a block.

    A member has a nested `Config`, and its constructor takes (config, in_features, out_features, name, init_std).
    Parameters may be stored in fp32 or bf16; `forward` casts them to the dtype of its input.
    """

    projectable: ClassVar[tuple[str, ...]] = ()
    """Own parameters whose gradient a matrix optimizer may project to low rank; factors are small already."""
    silent_at_zero: ClassVar[tuple[str, ...]]
    """Own tensors that make the map zero when they are; those that train receive gradient at once if others are not
    zero. Empty where there are none such."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Keys of the configuration by which shapes go and that growth cannot change."""
    not_a_matrix: ClassVar[str] = ""
    """Why such linears have no dense weights, for messages (`require_matrices`); empty where they have."""

    def __init__(self, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.name = name
        """Full name of the module in the model; seeds its initial values."""
        self.init_std = init_std
        """Standard deviation with which a dense matrix would start."""
        self.eight_bit: EightBit | None = None
        """How W is multiplied in training, where that is in eight bits."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out), in the dtype of x."""

    @abstractmethod
    def reset_parameters(self, seed: int) -> None:
        """Initialise every parameter and buffer from (seed, its full name), equal on every device."""

    @abstractmethod
    def dense_weight(self) -> Tensor:
        """Return the map as one fp32 matrix (out, in). TypeError where it is none (`not_a_matrix`)."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors that train, by own name."""
        return {name: tuple(parameter.shape) for name, parameter in self.named_parameters()}

    @staticmethod
    @abstractmethod
    def count_parameters(config: Any, in_features: int, out_features: int) -> int:
        """Count the numbers of such a linear that train."""

    @staticmethod
    def count_frozen(config: Any, in_features: int, out_features: int) -> int:
        """Count the numbers of such a linear that do not train: entries of its dense buffers."""
        return 0

    @staticmethod
    def in_block(config: Any, shapes: Iterable[tuple[int, int]]) -> Any:
        """Return `config` for the linears of a block whose projections have these shapes (in, out)."""
        return config

    @property
    def products(self) -> EightBit | None:
        """How W is multiplied now: evaluation and sampling multiply in the dtype of x, as an exported model does."""
        return self.eight_bit if self.training else None

    def multiply(self, x: Tensor, W: Tensor) -> Tensor:
        """x W^T (..., out) of x (..., in) and W (out, in), in the dtype of x."""
        how = self.products
        return F.linear(x, W.to(x.dtype)) if how is None else eight_bit_linear(x, W, how)

    @staticmethod
    def multiplies_matrix(config: Any) -> bool:
        """Whether such a linear multiplies with a W (out, in), whose products may be in eight bits."""
        return False

    @staticmethod
    def may_choose(config: Any) -> bool:
        """Whether a Choice says how such a linear computes."""
        return False

    @staticmethod
    def draw_rows(config: Any, rows: Tensor, out_features: int, seed: int, name: str) -> None:
        """Fill rows (k, in) of such a linear's factor A as a fresh one has them, from (seed, name)."""
        fill_uniform(rows, rows.shape[1] ** -0.5, seed, name)

    @classmethod
    def training_flops(
        cls,
        config: Any,
        in_features: int,
        out_features: int,
        tokens: int,
        choice: Choice | None = None,
        micro_steps: int = 1,
    ) -> int:
        """FLOPs of `micro_steps` forward and backward passes over `tokens` tokens each; a multiply-add is two.

        Each number is multiplied with for the output and the input's gradient; one that trains has its own gradient,
        so a frozen one costs two thirds of that.
        `choice` is how the linear computes where there is something to choose; None is a Choice's default.
        """
        trained = cls.count_parameters(config, in_features, out_features)
        frozen = cls.count_frozen(config, in_features, out_features)
        return micro_steps * tokens * (6 * trained + 4 * frozen)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}"
