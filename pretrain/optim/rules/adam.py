"""What the rules that keep Adam's moments of R share."""

import torch
from torch import Tensor

from pretrain.optim.matrix import Matrix
from pretrain.optim.moments import init_moments, rotate_moments
from pretrain.optim.rules.base import Rule, State


class ProjectedAdam(Rule):
    """Moments of R (rank, n), carried into a new basis where `rotate_moments` asks for it."""

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        return init_moments(self.config, (matrix.rank, matrix.n), device)

    def change_basis(self, matrix: Matrix, state: State, old: Tensor, new: Tensor, step: int) -> None:
        if self.config.rotate_moments:
            rotate_moments(self.config, state, old, new, matrix.name, step)


def project(P: Tensor, G: Tensor, products: torch.dtype) -> Tensor:
    """R = P^T G (rank, n), multiplied in `products`, as fp32."""
    return (P.to(products).t() @ G.to(products)).float()
