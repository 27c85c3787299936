"""The truncated decomposition against the exact one in float64."""

import pytest
import torch

from model.linear import truncated_svd as module
from model.linear.truncated_svd import truncated_svd


def best(matrix, rank):
    """The nearest matrix of this rank."""
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


@pytest.mark.parametrize(("decay", "most"), [(0.0, 3e-3), (0.5, 2e-4), (2.0, 1e-5)])
def test_subspace_iteration_is_nearly_as_near_as_the_exact_decomposition(monkeypatch, decay, most):
    """Both sides of a matrix too large for the exact one; its spectrum is flat, or falls as i^-decay."""
    monkeypatch.setattr(module, "EXACT_SIDE", 100)
    dense, rank = torch.randn(300, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 40
    if decay:
        U, s, Vh = torch.linalg.svd(dense, full_matrices=False)
        dense = (U * torch.arange(1.0, 301, dtype=torch.float64) ** -decay) @ Vh
    least = (dense - best(dense, rank)).norm()
    for matrix in (dense, dense.t()):
        U, s, Vh = truncated_svd(matrix.float(), rank, torch.Generator().manual_seed(1))
        missed = (matrix - (U.double() * s.double()) @ Vh.double()).norm()
        assert float(missed / least) - 1 < most
        again = truncated_svd(matrix.float(), rank, torch.Generator().manual_seed(1))
        assert torch.equal(Vh, again[2])
