"""Fira (arXiv 2410.01623): GaLore, plus what the projection leaves out, scaled as Adam scaled the projection."""

from typing import Literal

import torch
from torch import Tensor

from kernels.fira_update import fira_update_
from pretrain.optim.config import OF_SUMS, MatrixConfig
from pretrain.optim.matrix import Matrix
from pretrain.optim.moments import correction, direction
from pretrain.optim.rules.adam import ProjectedAdam
from pretrain.optim.rules.base import State, Step, WeightUpdate, project


class Fira(ProjectedAdam):
    """W <- W - lr c (scale P N + E / limiter), then decay: see `kernels.fira_update.fira_update_`.

    E's columns are scaled by |N| / |R| with N before bias correction, which is in the step size. The limiter's state
    is one number per matrix, on every rank.
    """

    class Config(MatrixConfig):
        """Fira (arXiv 2410.01623) with AdamW; the defaults are the paper's for 60M parameters.

        With 8-bit moments eps stays before the bias correction, as in SubTrack++'s 8-bit release: the limiter is for N
        without it, and of a corrected N it would let the first 20 residuals be up to 1.8 times as large.
        """

        ignored = OF_SUMS
        quantised_eps_mode = "galore"
        name: Literal["fira"] = "fira"
        residual: Literal["code", "paper"] = "code"
        """code: residual G - scale P R, added to scale P N, as released and published. paper: scale (P N + G - P R)."""

    needs = "full"
    gradient_everywhere = True
    exact_basis = True
    config: Config

    def init_shared(self, matrix: Matrix, device: torch.device) -> State:
        return {"limiter": torch.full((), torch.inf, device=device)}

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return {"R": (matrix.rank, matrix.n), "N": (matrix.rank, matrix.n)}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        assert P is not None
        R = project(P, gradient, step.products)
        return {"R": R, "N": direction(self.config, state, R, step.number, matrix.name)[0]}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        matrix, step, last = update.matrix, update.step, update.shared["limiter"]
        low_rank = (factor.to(step.products) for factor in (update.P, update.message["R"], update.message["N"]))
        P, R, N = (matrix.left_form(factor).contiguous() for factor in low_rank)
        factor, scale = correction(self.config, step.number), self.config.scale
        if self.config.residual == "paper":
            factor, scale = factor * scale, 1.0
        limiter = fira_update_(
            weight, matrix.left_form(update.G).contiguous(), P, R, N, last, step.lr * factor, scale,
            self.config.weight_decay / factor, side=matrix.side, key=step.key, decay_after=True,
        )  # fmt: skip
        keep_limiter(last, limiter)


def keep_limiter(state: Tensor, new: Tensor) -> None:
    """Remember `new`, unless it is at most 1e-8, as after a zero gradient: it would shut out every later residual."""
    state.copy_(torch.where(new > 1e-8, new, state))
