"""Fira against its released and its published form (arXiv 2410.01623) in float64."""

import itertools

import pytest
import torch
from optim_drive import SHAPES, drive, gradients
from support import check_optimizer

from model.errors import UserError
from pretrain.optim.rules import PRESETS
from pretrain.optim.rules.fira import Fira


def reference(residual, start, grads, rank, gap, lr, scale, betas, eps, weight_decay):
    """In left form: rows are projected."""
    right = start.shape[0] >= start.shape[1]
    W, M, V, P, before, seen = (start.t() if right else start).double(), 0.0, 0.0, None, None, []
    for t, G in enumerate(grads):
        G = (G.t() if right else G).double()
        if t % gap == 0:
            new = torch.linalg.svd(G, full_matrices=False).U[:, :rank]
            P = new if P is None else new * torch.sign((new * P).sum(0))
        R = P.t() @ G
        M = betas[0] * M + (1 - betas[0]) * R
        V = betas[1] * V + (1 - betas[1]) * R * R
        N = M / (V.sqrt() + eps)
        S = (G - (scale if residual == "code" else 1.0) * P @ R) * N.norm(dim=0) / (R.norm(dim=0) + 1e-8)
        norm = S.norm()
        limiter = 1.0 if before is None else max(norm / (before + 1e-8), 1.01) / 1.01
        before = norm / limiter
        S = S / limiter
        U = scale * P @ N + S if residual == "code" else scale * (P @ N + S)
        W = W - lr * (1 - betas[1] ** (t + 1)) ** 0.5 / (1 - betas[0] ** (t + 1)) * U
        W = W - lr * weight_decay * W
        seen.append(W.t() if right else W)
    return seen


@pytest.mark.parametrize("residual", ["code", "paper"])
@pytest.mark.parametrize("rank", [1, 4, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equations(shape, rank, residual):
    rank = min(rank or min(shape), *shape)
    start, signal = gradients(shape, 2, seed=1)
    signal = 3 * torch.outer(signal[:, 0].sign(), signal[0].sign())  # R is nowhere near 0: |N| / |R| is exact
    growths = [1, 1, 9, 1, 0.1, 3] * 2
    grads = [(G + signal) * growth for G, growth in zip(gradients(shape, 12), growths, strict=True)]
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "scale": 0.25, "weight_decay": 0.1}
    config = Fira.Config(
        rank=rank, update_proj_gap=5, projector="svd", refresh_stagger=False, residual=residual, **settings
    )
    expected = reference(residual, start, grads, rank=rank, gap=5, **settings)
    for found, right in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


def test_a_zero_gradient_does_not_shut_the_limiter():
    start, grads = torch.zeros(16, 24), gradients((16, 24), 3)
    config = Fira.Config(rank=4, projector="svd", scale=1e-9)
    first, same, last = drive(config, start, [grads[0], torch.zeros(16, 24), grads[1]])
    assert (last - same).norm() > 0.3 * first.norm()


def test_a_basis_must_be_orthonormal():
    with pytest.raises(UserError, match=r"orthonormal.*choose another"):
        check_optimizer(Fira.Config(projector="gaussian"))


@pytest.mark.parametrize("name", ["fira", "subtrack"])
def test_the_limiter_sees_the_same_growth_whatever_the_moments(name):
    """Of a direction corrected for bias it would let the first 20 residuals be up to 1.8 times as large."""
    signal, *noise = gradients((64, 96), 21)
    seen = {}
    for moments in ("fp32", "8bit"):
        config = PRESETS[name].Config(moments=moments, rank=8, projector="svd")
        weights = [torch.zeros(64, 96), *drive(config, torch.zeros(64, 96), [signal + part for part in noise])]
        seen[moments] = torch.tensor([(new - old).norm() for old, new in itertools.pairwise(weights)])
    torch.testing.assert_close(seen["8bit"], seen["fp32"], rtol=0.05, atol=0)
