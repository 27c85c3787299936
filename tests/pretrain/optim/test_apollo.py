"""APOLLO against its equations (arXiv 2412.05270) in float64."""

import pytest
import torch
from optim_drive import SHAPES, drive, gradients, optimizer_of
from support import check_optimizer

from model.errors import UserError
from model.seeding import generator
from pretrain.optim.rules.apollo import Apollo, ApolloMini

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}


def reference(start, grads, rank, gap, scale, scale_type, scale_front, lr, betas, eps, weight_decay):
    """In left form: rows are projected."""
    right = start.shape[0] >= start.shape[1]
    W, M, V, before, seen = (start.t() if right else start).double(), 0.0, 0.0, None, []
    for t, G in enumerate(grads):
        G = (G.t() if right else G).double()
        if t % gap == 0:
            random = generator(0, "refresh", "w", t)
            P = torch.randn(G.shape[0], rank, generator=random).double() / rank**0.5
        R = P.t() @ G
        M = betas[0] * M + (1 - betas[0]) * R
        V = betas[1] * V + (1 - betas[1]) * R * R
        N = M / (V.sqrt() + eps)
        dim = 0 if scale_type == "channel" else (0, 1)
        U = G * N.norm(dim=dim) / (R.norm(dim=dim) + 1e-8)
        if scale_front:
            U = U * scale**0.5
        norm = U.norm()
        limiter = 1.0 if before is None else max(norm / (before + 1e-8), 1.01) / 1.01
        before = norm / limiter
        U = U / limiter if scale_front else U / limiter * scale**0.5
        W = W - lr * (1 - betas[1] ** (t + 1)) ** 0.5 / (1 - betas[0] ** (t + 1)) * U
        W = W - lr * weight_decay * W
        seen.append(W.t() if right else W)
    return seen


@pytest.mark.parametrize("scale_front", [False, True], ids=["scale behind", "scale in front"])
@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize("rank", [1, 4, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equations(shape, rank, scale_type, scale_front):
    options = {"scale": 2.0, "scale_type": scale_type, "scale_front": scale_front, **SETTINGS}
    options["rank"] = min(rank or min(shape), *shape)
    grads = [G * growth for G, growth in zip(gradients(shape, 12, seed=10), [1, 1, 9, 1, 0.1, 3] * 2, strict=True)]
    start = gradients(shape, 1, seed=1)[0]
    config = Apollo.Config(update_proj_gap=5, refresh_stagger=False, **options)
    expected = reference(start, grads, gap=5, **options)
    for found, right in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


def test_the_basis_before_the_first_refresh_is_gaussian_too():
    """An orthonormal one would make the factors of staggered matrices larger by the root of m / rank."""
    optimizer = optimizer_of(Apollo.Config(rank=8), torch.nn.Parameter(torch.zeros(64, 96)))
    torch.testing.assert_close(optimizer.targets[0].P.square().mean(), torch.tensor(1 / 8), rtol=0.2, atol=0)


def test_mini_is_rank_one_with_one_factor():
    config = ApolloMini.Config()
    assert (config.rank, config.scale_type, config.scale, config.projector) == (1, "tensor", 128, "gaussian")


def test_the_factors_of_a_gradient_that_is_projected_whole_are_adams():
    """|N| / |R| by column: the first step of Adam has length lr sqrt(m), whatever the gradient's size."""
    G = gradients((16, 24), 1)[0] * torch.logspace(-3, 3, 24)
    config = Apollo.Config(projector="svd", rank=16, lr=0.5, eps=1e-12)
    (W,) = drive(config, torch.zeros(16, 24), [G])
    torch.testing.assert_close(W.norm(dim=0), torch.full((24,), 0.5 * 4), rtol=1e-5, atol=0)


def test_cautious_means_nothing_here():
    with pytest.raises(UserError, match=r"optimizer\.cautious .* set it to false"):
        check_optimizer(Apollo.Config(cautious=True))
