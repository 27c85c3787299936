"""LDAdam (arXiv 2410.16103): a new basis at every step, moments that follow it, and nothing of the gradient lost."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kernels.low_rank_update import low_rank_update_
from pretrain.optim.config import OF_BASES, OF_SUMS, Beta, MatrixConfig
from pretrain.optim.matrix import Matrix
from pretrain.optim.moments import direction, load, rotate_moments
from pretrain.optim.rules.adam import OwnBasis, first_basis
from pretrain.optim.rules.base import State, Step, WeightUpdate, project


class LDAdam(OwnBasis):
    """Adam on R = P^T A in a basis that takes one step of block power iteration per step.

    A = G + E with the error E so far; B = rho P' m' + (1 - rho) A with the last basis P' and bias-corrected mean m';
    P = qr(B B^T P').Q, at the first step the singular vectors of A. Moments are rotated into P (see `rotate_moments`),
    m'' the rotated mean; then E <- A - P R + beta1 / (1 - beta1) (P' m' - P m''), with means not corrected for bias.
    The weight is decayed before the update. E (m, n), fp32 and on the owner alone, is the memory that it costs: one
    weight matrix more.
    """

    class Config(MatrixConfig):
        """LDAdam (arXiv 2410.16103); the defaults are the released ones."""

        ignored = OF_SUMS | OF_BASES | {"update_proj_gap"}
        decay_after = False
        name: Literal["ldadam"] = "ldadam"
        lr: float = Field(1e-3, gt=0)
        betas: tuple[Beta, Beta] = (0.908, 0.99)
        eps: float = Field(1e-8, gt=0)
        eps_mode: Literal["galore", "torch"] = "torch"
        rank: int = Field(16, ge=1)
        scale: float = Field(1.0, gt=0)
        rotate_moments: Literal[True] = True
        """Always."""
        rho: float = Field(0.908, ge=0, lt=1)
        """Weight of the past mean, against the gradient, in finding the basis."""
        error_feedback: bool = True
        """Add to the next gradient what the projections of gradient and moments left out."""

    square_side = "left"
    config: Config

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        error = {"error": torch.zeros(matrix.m, matrix.n, device=device)} if self.config.error_feedback else {}
        return super().init_state(matrix, device) | error

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        config, beta1 = self.config, self.config.betas[0]
        A = state["error"].add_(gradient) if config.error_feedback else gradient
        old, mean = state["P"], load(config, state)[0].clone()
        if step.number == 1:
            P = first_basis(matrix, A)
        else:
            P = power_step(old, mean / (1 - beta1 ** (step.number - 1)), A, config.rho, step.products)
        R = project(P, A, step.products)
        rotate_moments(config, state, old, P, matrix.name, step.number)
        if config.error_feedback:
            factor = beta1 / (1 - beta1)
            rotated = load(config, state)[0]
            left, right = torch.cat([old, P], 1), torch.cat([factor * mean, -R - factor * rotated])
            A.add_(left.to(step.products) @ right.to(step.products))
        state["P"] = P
        N, correction = direction(config, state, R, step.number, matrix.name)
        return {"P": P, "N": N * correction}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        step = update.step
        P, N = (update.message[name].to(step.products) for name in ("P", "N"))
        left, right = (P, N) if update.matrix.side == "left" else (N.t().contiguous(), P.t().contiguous())
        low_rank_update_(weight, left, right, step.lr, self.config.scale, self.config.weight_decay, key=step.key)


def power_step(P: Tensor, mean: Tensor, A: Tensor, rho: float, products: torch.dtype) -> Tensor:
    """qr(B B^T P).Q (m, rank) of B = rho P mean + (1 - rho) A, which is not formed.

    P (m, rank) has orthonormal columns, mean (rank, n), A (m, n). A basis for B = 0 too.
    """
    reached = rho * mean + (1 - rho) * project(P, A, products)  # (B^T P)^T
    image = (A.to(products) @ reached.to(products).t()).float()
    Q = torch.linalg.qr(rho * P @ (mean @ reached.t()) + (1 - rho) * image).Q
    return Q.contiguous()  # QR gives columns; ranks send each other rows
