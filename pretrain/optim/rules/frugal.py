"""FRUGAL (arXiv 2411.07837): Adam inside of the subspace, the sign of the gradient outside."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kernels.scaled_update import scaled_update_
from pretrain.optim.config import OF_SUMS, MatrixConfig
from pretrain.optim.matrix import Matrix
from pretrain.optim.moments import direction, init_moments
from pretrain.optim.rules.adam import ProjectedAdam
from pretrain.optim.rules.base import State, Step, WeightUpdate, project


class Frugal(ProjectedAdam):
    """W <- (1 - lr decay) W - lr (c scale P N + inactive_lr_scale sign(G - P R)).

    The moments, and the count that corrects their bias, restart with each basis, unless `rotate_moments` carries them
    over. A basis of full rank leaves nothing outside.
    """

    class Config(MatrixConfig):
        """FRUGAL (arXiv 2411.07837); the defaults are the paper's, rank its density of 0.25 of the width at 60M."""

        ignored = OF_SUMS
        decay_after = False
        quantised_eps_mode = "galore"
        name: Literal["frugal"] = "frugal"
        lr: float = Field(1e-3, gt=0)
        eps: float = Field(1e-8, gt=0)
        scale: float = Field(1.0, gt=0)
        projector: str = "random_orthogonal"
        inactive_lr_scale: float = Field(1.0, ge=0)
        """Learning rate of signSGD over that of Adam."""

    needs = "full"
    gradient_everywhere = True
    exact_basis = True
    config: Config

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        return init_moments(self.config, (matrix.rank, matrix.n), device, counted=True)

    def change_basis(self, matrix: Matrix, state: State, old: Tensor, new: Tensor, step: int) -> None:
        if self.config.rotate_moments:
            super().change_basis(matrix, state, old, new, step)
            return
        for name, fresh in self.init_state(matrix, new.device).items():
            state[name].copy_(fresh)

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return {"R": (matrix.rank, matrix.n), "N": (matrix.rank, matrix.n)}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        assert P is not None
        R = project(P, gradient, step.products)
        N, correction = direction(self.config, state, R, step.number, matrix.name)
        return {"R": R, "N": N.mul_(correction)}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        matrix, step = update.matrix, update.step
        P, R, N = (factor.to(step.products) for factor in (update.P, update.message["R"], update.message["N"]))

        def back(low_rank: Tensor) -> tuple[Tensor, Tensor]:
            return (P, low_rank) if matrix.side == "left" else (low_rank.t(), P.t())

        # G is rounded like R, so that what P selects exactly leaves exactly nothing, which has no sign.
        outside = torch.addmm(matrix.left_form(update.G).to(step.products), *back(R), alpha=-1).sign_()
        inactive = self.config.inactive_lr_scale if matrix.rank < matrix.m else 0.0
        both = torch.addmm(outside, *back(N), beta=inactive, alpha=self.config.scale)
        one = torch.ones(1, 1, device=weight.device)
        scaled_update_(weight, both, one, step.lr, self.config.weight_decay, key=step.key)
