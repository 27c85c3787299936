"""GaLore against its equations (arXiv 2403.03507) in float64."""

import pytest
import torch
from optim_drive import SHAPES, drive, gradients

from pretrain.optim.rules.galore import GaLore


def reference(start, grads, rank, gap, lr, scale, betas, eps, weight_decay):
    W, M, V, P, seen = start.double(), 0.0, 0.0, None, []
    for t, G in enumerate(grads):
        G = G.double()
        right = G.shape[0] >= G.shape[1]
        if t % gap == 0:
            U, _, Vh = torch.linalg.svd(G, full_matrices=False)
            new = Vh[:rank].T if right else U[:, :rank]
            P = new if P is None else new * torch.sign((new * P).sum(0))
        R = G @ P if right else P.T @ G
        M = betas[0] * M + (1 - betas[0]) * R
        V = betas[1] * V + (1 - betas[1]) * R * R
        N = M / (V.sqrt() + eps)
        size = lr * (1 - betas[1] ** (t + 1)) ** 0.5 / (1 - betas[0] ** (t + 1))
        W = W - size * scale * (N @ P.T if right else P @ N)
        W = W - lr * weight_decay * W
        seen.append(W)
    return seen


@pytest.mark.parametrize("rank", [1, 4, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equations(shape, rank):
    rank = min(rank or min(shape), *shape)
    grads, start = gradients(shape, 12), gradients(shape, 1, seed=1)[0]
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "scale": 0.25, "weight_decay": 0.1}
    config = GaLore.Config(rank=rank, update_proj_gap=5, projector="svd", refresh_stagger=False, **settings)
    expected = reference(start, grads, rank=rank, gap=5, **settings)
    for found, right in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)
