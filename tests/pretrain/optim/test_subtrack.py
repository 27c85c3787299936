"""SubTrack++ against its equations (arXiv 2502.01586) in float64."""

import pytest
import torch
from optim_drive import SHAPES, drive, gradients, optimizer_of
from torch import nn
from toy_problem import remaining_error

from pretrain.optim.rules.subtrack import SubTrack, geodesic

SETTINGS = {"lr": 0.001, "betas": (0.9, 0.99), "eps": 1e-6, "scale": 0.25, "weight_decay": 0.1}
SIZE = 1e-3


def moved(P, G, size):
    """The paper's equation 4 with a least-squares fit and the SVD of the tangent, turned down the slope."""
    A = torch.linalg.lstsq(P, G).solution
    U, S, Vh = torch.linalg.svd(-2 * (G - P @ A) @ A.T, full_matrices=False)
    u, s, v = -U[:, :1], S[0], Vh[:1].T  # of the slope; down it is -u
    turned = torch.cat([P @ v, u], 1) @ torch.stack([(size * s).cos(), (size * s).sin()])[:, None]
    return turned @ v.T + P @ (torch.eye(P.shape[1], dtype=P.dtype) - v @ v.T)


def reference(start, grads, rank, gap, size, lr, scale, betas, eps, weight_decay):
    right = start.shape[0] >= start.shape[1]
    (beta1, beta2), W = betas, (start.T if right else start).double()
    P, M, V, limit, seen = None, 0.0, 0.0, None, []
    for t, G in enumerate(grads, 1):
        G = (G.T if right else G).double()
        if t == 1:
            P = torch.linalg.svd(G, full_matrices=False).U[:, :rank]
        elif (t - 1) % gap == 0:
            old, P = P, moved(P, G, size)
            C = P.T @ old
            mean, square = M / (1 - beta1 ** (t - 1)), V / (1 - beta2 ** (t - 1))
            M = C @ M
            V = (1 - beta2 ** (t - 1)) * (C**2 @ (square - mean**2) + (C @ mean) ** 2).abs()
        R = P.T @ G
        M, V = beta1 * M + (1 - beta1) * R, beta2 * V + (1 - beta2) * R * R
        N = M / (V.sqrt() + eps)
        rest = (G - scale * P @ R) * N.norm(dim=0) / (R.norm(dim=0) + 1e-8)
        norm = rest.norm()
        limiter = 1.0 if limit is None else max(norm / (limit + 1e-8), 1.01) / 1.01
        limit = norm / limiter
        step = lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        W = W - step * (scale * P @ N + rest / limiter)
        W = W - lr * weight_decay * W
        seen.append(W.T if right else W)
    return seen


@pytest.mark.parametrize("rank", [1, 4, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equations(shape, rank):
    rank = min(rank or min(shape), *shape)
    # |N| / |R| magnifies rounding where a column of R comes near 0, as it may in one dimension: not with seed 4.
    grads, start = gradients(shape, 12, seed=4), gradients(shape, 1, seed=1)[0]
    chosen = {"update_proj_gap": 4, "geodesic_step": SIZE, "projector": "svd", "refresh_stagger": False}
    expected = reference(start, grads, rank, 4, SIZE, **SETTINGS)
    for found, right in zip(
        drive(SubTrack.Config(rank=rank, **chosen, **SETTINGS), start, grads), expected, strict=True
    ):
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 4])
def test_a_move_lessens_what_the_basis_leaves_out_and_keeps_it_orthonormal(rank):
    G = gradients((16, 24), 1)[0]
    P = torch.linalg.qr(gradients((16, rank), 1, seed=1)[0]).Q
    new = geodesic(P, G, SIZE, torch.float32)
    torch.testing.assert_close(new.T @ new, torch.eye(rank), rtol=0, atol=1e-6)
    assert (G - new @ (new.T @ G)).norm() < (G - P @ (P.T @ G)).norm() - 0.02
    torch.testing.assert_close(new.double(), moved(P.double(), G.double(), SIZE), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [2, 8])
def test_a_gradient_within_the_basis_leaves_it(rank):
    P = torch.linalg.qr(gradients((8, rank), 1)[0]).Q
    held = P @ gradients((rank, 12), 1, seed=1)[0]
    new = geodesic(P, held, 10.0, torch.float32)
    torch.testing.assert_close(new, P, rtol=0, atol=1e-3)
    torch.testing.assert_close(new.T @ new, torch.eye(rank), rtol=0, atol=1e-6)
    assert torch.equal(geodesic(P, torch.zeros(8, 12), 10.0, torch.float32), P)


@pytest.mark.parametrize("stagger", [True, False])
def test_the_basis_moves_at_its_turn_alone(stagger):
    config = SubTrack.Config(rank=4, projector="svd", update_proj_gap=4, geodesic_step=SIZE, refresh_stagger=stagger)
    weight = nn.Parameter(torch.zeros(16, 24))
    optimizer, bases = optimizer_of(config, weight), []
    for gradient in gradients((16, 24), 10):
        weight.grad = gradient
        optimizer.step()
        bases.append(optimizer.targets[0].state["P"].clone())
    moves = [t for t in range(1, 10) if not torch.equal(bases[t - 1], bases[t])]
    assert moves == [4, 8]


@pytest.mark.parametrize("gradient", [torch.zeros(6, 4), torch.ones(6, 4)], ids=["zero", "rank 1"])
@pytest.mark.parametrize("moments", ["fp32", "bf16", "8bit"])
@pytest.mark.fault("F25")
def test_stays_finite(gradient, moments):
    config = SubTrack.Config(rank=3, projector="svd", update_proj_gap=2, moments=moments)
    assert drive(config, torch.ones(6, 4), [gradient] * 5 + gradients((6, 4), 3))[-1].isfinite().all()


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)], ids=str)
def test_learns_a_matrix(shape):
    config = SubTrack.Config(lr=0.1, rank=4, scale=1.0, projector="svd", update_proj_gap=10, geodesic_step=SIZE)
    assert remaining_error(config, shape=shape) < 0.01
