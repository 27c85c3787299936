"""Growth of the rank of two factors."""

import torch
from torch import Tensor

from model.errors import UserError
from model.initialise import fill_uniform


def grow_rank(A: Tensor, B: Tensor, rank: int, ratio: float, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) with ratio * B_old A_old = B A, of the rank given.

    B gets columns of zeros, A gets rows as a fresh linear has them: uniform in +-1/sqrt(in), from (seed, name). The new
    columns of B receive gradient in the first step, the new rows of A from the second. `ratio` = old scale / new scale
    goes into B: exact where it is a power of two, else to half a unit in the last place of each entry of B.
    UserError when the rank would shrink.
    """
    old, n_in = A.shape
    if rank < old:
        raise UserError(f"growth: linear.rank {old} cannot grow to {rank}, which is less")
    rows = A.new_empty(rank - old, n_in)
    fill_uniform(rows, n_in**-0.5, seed, f"{name}.A.from_{old}")
    scaled = B if ratio == 1 else (B.double() * ratio).to(B.dtype)
    return torch.cat([A, rows]), torch.cat([scaled, B.new_zeros(B.shape[0], rank - old)], dim=1)
