"""Fira's weight update in plain PyTorch: one product, the residual's norm from those of G and R where that is exact."""

from typing import Literal

import torch
from torch import Tensor

from kernels.fira_update.reference import Side, limiter
from kernels.products import add_product_

SMALLEST_SHARE = 1e-2
"""Part of G's energy in the residual; below it the difference of norms has too few digits: the residual is formed."""


def fira_update_(
    W: Tensor,
    G: Tensor,
    P: Tensor,
    R: Tensor,
    N: Tensor,
    previous: Tensor,
    lr: float,
    scale: float,
    weight_decay: float,
    side: Side,
    decay_after: bool,
) -> Tensor:
    """Change W (rows, cols) fp32 in place; the limiter's new state. See `kernels.fira_update.fira_update_`.

    A column G_j with R_j = P^T G_j and orthonormal P has |G_j - scale P R_j|^2 = |G_j|^2 - (2 scale - scale^2) |R_j|^2.
    """
    dim: Literal[0, 1] = 0 if side == "left" else 1
    G = G.float()
    whole, kept, step = (_squares(X.float(), dim) for X in (G, R, N))
    scaling = step.sqrt() / (kept.sqrt() + 1e-8)
    energy = torch.dot(scaling.square().flatten(), (whole - (2 * scale - scale**2) * kept).flatten())
    if energy > SMALLEST_SHARE * torch.dot(scaling.square().flatten(), whole.flatten()):
        norm = energy.sqrt()
    else:
        left, right = _ordered(P, R, side)
        norm = torch.addmm(G, left.float(), right.float(), alpha=-scale).mul_(scaling).norm()
    c = limiter(norm, previous)
    scaling = scaling / c
    decay = 1 - lr * weight_decay
    lr = lr * decay if decay_after else lr
    limited = torch.addcmul(N.float(), R.float(), scaling, value=-1).to(N.dtype)
    add_product_(W, *_ordered(P, limited, side), decay, -lr * scale)
    W.addcmul_(G, scaling, value=-lr)
    return norm / c


def _squares(X: Tensor, dim: int) -> Tensor:
    """Squared norms over `dim`: a product and a sum, as vector_norm over rows is ten times slower."""
    return X.square().sum(dim, keepdim=True)


def _ordered(P: Tensor, low_rank: Tensor, side: Side) -> tuple[Tensor, Tensor]:
    return (P, low_rank) if side == "left" else (low_rank, P)
