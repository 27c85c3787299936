"""SubTrack++ (arXiv 2502.01586): the basis follows the gradient along geodesics, its moments and residual with it."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pretrain.optim.config import OF_BASES, OF_SUMS
from pretrain.optim.matrix import Matrix
from pretrain.optim.moments import rotate_moments
from pretrain.optim.rules.adam import empty_basis, first_basis
from pretrain.optim.rules.base import State, Step, WeightUpdate, project
from pretrain.optim.rules.fira import Fira


class SubTrack(Fira):
    """Fira in a basis that begins as the first gradient's singular vectors and moves every `update_proj_gap` steps.

    Moments are rotated at each move as LDAdam's (`rotate_moments`). These are the paper's equations, in left form for
    tall and wide matrices alike. The released code departs from them: it multiplies the rotated second moment by
    1 - beta2, rotates at the step before the move and from the first basis always, and its tangent vanishes for
    matrices projected from the right, whose basis so never moves.
    """

    class Config(Fira.Config):
        """SubTrack++ (arXiv 2502.01586); the defaults are the released script's for 60M parameters."""

        ignored = OF_SUMS | OF_BASES - {"refresh_stagger"}
        name: Literal["subtrack"] = "subtrack"  # type: ignore[assignment]
        lr: float = Field(1e-3, gt=0)
        rotate_moments: Literal[True] = True
        """Always."""
        geodesic_step: float = Field(10.0, gt=0)
        """Length of a step along the geodesic over the largest singular value of the tangent."""

    uses_basis = False
    config: Config

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        return super().init_state(matrix, device) | empty_basis(matrix, device)

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return super().message_shapes(matrix) | {"P": (matrix.m, matrix.rank)}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        if step.number == 1:
            state["P"] = first_basis(matrix, gradient)
        elif step.refreshed:
            P = geodesic(state["P"], gradient, self.config.geodesic_step, step.products)
            rotate_moments(self.config, state, state["P"], P, matrix.name, step.number)
            state["P"] = P
        return super().direct(matrix, state, state["P"], gradient, step) | {"P": state["P"]}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        super().apply(weight, replace(update, basis=update.message["P"]))


def geodesic(P: Tensor, G: Tensor, size: float, products: torch.dtype) -> Tensor:
    """P (m, rank), moved down the slope of |P A - G|_F^2 at its best A = P^T G, along the Grassmannian's geodesic.

    With the leading singular triplet (u, s, v) of the descent direction 2 (G - P A) A^T it turns P v towards u by the
    angle size * s: P <- P + ((cos - 1) P v + sin u) v^T. A gradient within the span of P leaves P as it is.
    """
    A = project(P, G, products)
    tangent = (G.to(products) @ A.to(products).t()).float() - P @ (A @ A.t())
    tangent -= P @ (P.t() @ tangent)  # again, as rounding leaves a part in the span of P
    v = torch.linalg.eigh(tangent.t() @ tangent).eigenvectors[:, -1:]
    along = tangent @ v
    length = along.norm()
    angle = 2 * size * length
    u = along / length.clamp(min=torch.finfo(torch.float32).tiny)
    return P + (angle.sin() * u - 2 * (angle / 2).sin().square() * (P @ v)) @ v.t()
