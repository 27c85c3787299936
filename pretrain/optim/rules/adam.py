"""What the rules that keep Adam's moments of R share, and those that find and move their own basis besides."""

import torch
from torch import Tensor

from pretrain.optim.matrix import Matrix
from pretrain.optim.moments import init_moments, rotate_moments
from pretrain.optim.rules.base import Rule, State, WeightUpdate, apply_low_rank


class ProjectedAdam(Rule):
    """Moments of R (rank, n), carried into a new basis where `rotate_moments` asks for it."""

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        return init_moments(self.config, (matrix.rank, matrix.n), device)

    def change_basis(self, matrix: Matrix, state: State, old: Tensor, new: Tensor, step: int) -> None:
        if self.config.rotate_moments:
            rotate_moments(self.config, state, old, new, matrix.name, step)


class OwnBasis(ProjectedAdam):
    """The owner alone keeps P (m, rank); each message carries it with the step N, so no other rank stores it."""

    needs = "full"
    uses_basis = False

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        return super().init_state(matrix, device) | empty_basis(matrix, device)

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return {"P": (matrix.m, matrix.rank), "N": (matrix.rank, matrix.n)}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        apply_low_rank(weight, update.message["P"], update.message["N"], self.config, update)


def empty_basis(matrix: Matrix, device: torch.device) -> State:
    """A place for P, until the first gradient."""
    return {"P": torch.zeros(matrix.m, matrix.rank, device=device)}


def first_basis(matrix: Matrix, G: Tensor) -> Tensor:
    """The leading left singular vectors (m, rank) of the first gradient; any orthonormal ones where it is zero."""
    return torch.linalg.svd(G, full_matrices=False).U[:, : matrix.rank].contiguous()
