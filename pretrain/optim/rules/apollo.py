"""APOLLO (arXiv 2412.05270): the whole gradient, scaled as Adam scales a random projection of it."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kernels.scaled_update import limit_growth_, scaled_update_
from pretrain.optim.config import OF_SUMS, MatrixConfig
from pretrain.optim.matrix import Matrix
from pretrain.optim.moments import correction, direction
from pretrain.optim.rules.adam import ProjectedAdam
from pretrain.optim.rules.base import State, Step, WeightUpdate, project


class Apollo(ProjectedAdam):
    """W <- W - lr c sqrt(scale) phi G / limiter, then decay; phi = |N| / (|R| + 1e-8) by column or over all.

    N is the one before bias correction, which is in the step size, behind the limiter. The owner sends phi alone: every
    rank has G and limits for itself, in the same order.
    """

    class Config(MatrixConfig):
        """APOLLO (arXiv 2412.05270); the defaults are the paper's for 60M parameters."""

        ignored = OF_SUMS
        quantised = (("moments", "8bit"), ("weights", "int8"))
        name: Literal["apollo"] = "apollo"
        projector: str = "gaussian"
        scale: float = Field(1.0, gt=0)
        """The update is multiplied by its root: a random projection to a small rank makes it smaller than Adam's."""
        scale_type: Literal["channel", "tensor"] = "channel"
        """channel: one factor per column or row, on the larger side. tensor: one per matrix."""
        scale_front: bool = False
        """Multiply by the root of `scale` before the limiter, not after: it limits ratios, so little depends on it."""

    needs = "full"
    gradient_everywhere = True
    config: Config

    def init_shared(self, matrix: Matrix, device: torch.device) -> State:
        return {"limiter": torch.full((), torch.inf, device=device)}

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return {"scaling": (1, matrix.n if self.config.scale_type == "channel" else 1)}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        assert P is not None
        R = project(P, gradient, step.products)
        N, _ = direction(self.config, state, R, step.number, matrix.name)
        dim = 0 if self.config.scale_type == "channel" else (0, 1)
        norm, size = (torch.linalg.vector_norm(X, dim=dim, keepdim=True) for X in (N, R))
        return {"scaling": norm / size.add_(1e-8)}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        matrix, step = update.matrix, update.step
        G, scaling = matrix.left_form(update.G).contiguous(), matrix.left_form(update.message["scaling"])
        factor = correction(self.config, step.number)
        if self.config.scale_front:
            scaling = scaling * self.config.scale**0.5
        else:
            factor *= self.config.scale**0.5
        scaling = limit_growth_(update.shared["limiter"], G, scaling)
        decay = self.config.weight_decay / factor
        scaled_update_(weight, G, scaling, step.lr * factor, decay, key=step.key, decay_after=True)


class ApolloMini(Apollo):
    """APOLLO with a rank of 1 and one factor per matrix."""

    class Config(Apollo.Config):
        """APOLLO-Mini (arXiv 2412.05270): rank 1; the defaults are the paper's for 60M parameters."""

        name: Literal["apollo_mini"] = "apollo_mini"  # type: ignore[assignment]
        rank: int = Field(1, ge=1)
        scale: float = Field(128.0, gt=0)
        scale_type: Literal["channel", "tensor"] = "tensor"
        scale_front: bool = True
