"""Online Subspace Descent (arXiv 2408.12857): the basis learns to keep the gradient, by one small step per step."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pretrain.optim.config import OF_BASES, OF_SUMS, MatrixConfig
from pretrain.optim.matrix import Matrix
from pretrain.optim.moments import direction
from pretrain.optim.rules.adam import OwnBasis, first_basis
from pretrain.optim.rules.base import State, Step, project

EPS, DECAY, ADAM_BETAS, LION_BETAS = 1e-8, 0.01, (0.9, 0.999), (0.9, 0.99)
"""Constants of the basis's optimizer, as released: PyTorch's defaults of AdamW, weight decay included, and Lion's."""


class OnlineSubspace(OwnBasis):
    """W <- W - lr c scale P N as GaLore, then P <- P + Opt(-dL/dP), L = |P P^T G~ - G~|^2 with G~ = G / |G|.

    P begins as the leading singular vectors of the first gradient, which do not move at that step. Moments are not
    rotated as P moves. As released, L has no term for orthogonality; the paper adds one.
    """

    class Config(MatrixConfig):
        """Online Subspace Descent (arXiv 2408.12857); the defaults are the released script's for 60M parameters.

        `update_proj_gap` is the basis's learning rate alone: lr_P = lr / (peak lr * update_proj_gap).
        """

        ignored = OF_SUMS | OF_BASES | {"rotate_moments"}
        name: Literal["online_subspace"] = "online_subspace"
        projection_optimizer: Literal["adamw", "sgd", "lion"] = "adamw"
        """What moves the basis."""
        reorth_every: int = Field(0, ge=0)
        """Make the basis orthonormal every so many steps; 0: never, as released. It stays within 1e-2 by itself."""

    config: Config

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        names = {"adamw": ("P_exp_avg", "P_exp_avg_sq"), "lion": ("P_exp_avg",), "sgd": ()}
        moments = names[self.config.projection_optimizer]
        return super().init_state(matrix, device) | {
            name: torch.zeros(matrix.m, matrix.rank, device=device) for name in moments
        }

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        first = step.number == 1
        P = first_basis(matrix, gradient) if first else state["P"]
        R = project(P, gradient, step.products)
        N, correction = direction(self.config, state, R, step.number, matrix.name)
        state["P"] = P if first else self._moved(state, P, gradient, R, step)
        return {"P": P, "N": N * correction}

    def _moved(self, state: State, P: Tensor, G: Tensor, R: Tensor, step: Step) -> Tensor:
        config, lr = self.config, step.run_lr / (self.config.lr * self.config.update_proj_gap)
        slope = loss_gradient(P, G, R, step.products)
        if config.projection_optimizer == "adamw":
            P = _adamw(state, P, slope, lr, step.number - 1)
        elif config.projection_optimizer == "lion":
            m, (beta1, beta2) = state["P_exp_avg"], LION_BETAS
            P = P - lr * m.lerp(slope, 1 - beta1).sign()
            m.lerp_(slope, 1 - beta2)
        else:
            P = P - lr * slope
        if config.reorth_every and step.number % config.reorth_every == 0:
            Q, triangle = torch.linalg.qr(P)
            # Columns keep their sides, so that moments stay valid. QR gives columns; ranks send each other rows.
            P = (Q * torch.where(triangle.diagonal() < 0, -1.0, 1.0)).contiguous()
        return P


def loss_gradient(P: Tensor, G: Tensor, R: Tensor, products: torch.dtype) -> Tensor:
    """dL/dP (m, rank) of L = |P P^T G~ - G~|_F^2, with G~ = G / |G| and R = P^T G.

    With E = P R~ - G~ it is 2 (E G~^T + G~ E^T) P = 2 (P R~ R~^T + G~ R~^T (P^T P - 2)): one product with G, and E is
    never formed. 0 for a gradient of 0.
    """
    norm = G.norm().clamp(min=1e-12)
    R = R / norm
    GR = (G.to(products) @ R.to(products).t()).float() / norm
    return 2 * (P @ (R @ R.t()) + GR @ (P.t() @ P) - 2 * GR)


def _adamw(state: State, P: Tensor, slope: Tensor, lr: float, number: int) -> Tensor:
    beta1, beta2 = ADAM_BETAS
    m = state["P_exp_avg"].lerp_(slope, 1 - beta1)
    v = state["P_exp_avg_sq"].mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
    root = (v / (1 - beta2**number)).sqrt_().add_(EPS)
    return (P * (1 - lr * DECAY)).addcdiv_(m, root, value=-lr / (1 - beta1**number))
