"""SinkGD against algorithms 3 and 4 of its paper in float64."""

import pytest
import torch
from optim_drive import SHAPES, drive, gradients

from pretrain.optim.rules.sinkgd import SinkGD, multi_normalise


def normalised(G, steps):
    """Algorithm 3 as it is written: rows to norm sqrt(n), then columns to norm sqrt(m)."""
    X, (m, n) = G.double(), G.shape
    for _ in range(steps):
        X = n**0.5 * X / X.norm(dim=1, keepdim=True)
        X = m**0.5 * X / X.norm(dim=0, keepdim=True)
    return X


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("shape", [*SHAPES, (48, 8)], ids=str)
def test_equals_the_algorithm(shape, steps, decay):
    start, grads = gradients(shape, 1, seed=1)[0], gradients(shape, 6)
    grads = [G * torch.logspace(-4, 2, shape[1]) for G in grads]
    config = SinkGD.Config(lr=0.2, scale=0.5, weight_decay=decay, sinkhorn_steps=steps)
    W = start.double()
    for found, G in zip(drive(config, start, grads), grads, strict=True):
        W = (1 - 0.1 * decay) * W - 0.1 * normalised(G, steps)
        torch.testing.assert_close(found.double(), W, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norms_of_rows_and_columns_become_those_of_a_sign(size):
    G = gradients((24, 16), 1)[0] * size
    rows, cols = multi_normalise(G, 30)
    X = rows * (cols * G)
    torch.testing.assert_close(X.norm(dim=1), torch.full((24,), 4.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(X.norm(dim=0), torch.full((16,), 24**0.5), rtol=1e-4, atol=0)


def test_rows_and_columns_of_zeros_stay_and_count_nothing():
    G = gradients((8, 6), 1)[0]
    G[2], G[:, 3] = 0.0, 0.0
    rows, cols = multi_normalise(G, 5)
    assert rows[2] == cols[0, 3] == 0
    assert (rows * (cols * G)).isfinite().all()
    assert not any(factor.any() for factor in multi_normalise(torch.zeros(3, 4), 5))
