"""Online Subspace Descent against its equations (arXiv 2408.12857) in float64, and against the released code."""

from itertools import pairwise

import pytest
import torch
from golden import golden, inputs
from optim_drive import SHAPES, drive, gradients, optimizer_of
from torch import nn
from toy_problem import remaining_error

from pretrain.optim.rules.online_subspace import OnlineSubspace, loss_gradient

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "scale": 0.25, "weight_decay": 0.1}


def loss(P, G):
    unit = G / G.norm()
    return (P @ P.T @ unit - unit).square().sum()


def reference(start, grads, rank, gap, kind, lr, scale, betas, eps, weight_decay):
    """In the orientation of the gradient's smaller side, and with the basis's gradient by autograd."""
    right = start.shape[0] >= start.shape[1]
    W, M, V, P, seen = (start.T if right else start).double(), 0.0, 0.0, None, []
    for t, G in enumerate(grads, 1):
        G = (G.T if right else G).double()
        if t == 1:
            P = torch.linalg.svd(G, full_matrices=False).U[:, :rank].clone().requires_grad_()
            move = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "lion": None}[kind]
            move = move and move([P], lr=1 / gap)
            m = torch.zeros_like(P)
        old = P.detach().clone()
        R = old.T @ G
        M = betas[0] * M + (1 - betas[0]) * R
        V = betas[1] * V + (1 - betas[1]) * R * R
        size = lr * (1 - betas[1] ** t) ** 0.5 / (1 - betas[0] ** t)
        W = W - size * scale * old @ (M / (V.sqrt() + eps))
        W = W - lr * weight_decay * W
        if t > 1:
            (P.grad,) = torch.autograd.grad(loss(P, G), P)
            if move is not None:
                move.step()
            else:
                P.data -= 1 / gap * torch.sign(0.9 * m + 0.1 * P.grad)
                m = 0.99 * m + 0.01 * P.grad
        seen.append(W.T if right else W)
    return seen


# A basis of the whole space has no slope: Adam and Lion would blow its rounding up to full steps.
CASES = [(shape, rank, "sgd") for shape in SHAPES for rank in (1, 4, 16) if rank <= min(shape)]
CASES += [(shape, rank, kind) for shape in SHAPES for rank in (1, 4) if rank < min(shape) for kind in ("adamw", "lion")]


@pytest.mark.parametrize(("shape", "rank", "kind"), CASES)
def test_equals_the_equations(shape, rank, kind):
    grads, start = gradients(shape, 12), gradients(shape, 1, seed=1)[0]
    config = OnlineSubspace.Config(
        rank=rank, update_proj_gap=50, projector="svd", projection_optimizer=kind, **SETTINGS
    )
    expected = reference(start, grads, rank=rank, gap=50, kind=kind, **SETTINGS)
    for found, right in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)], ids=str)
@pytest.mark.parametrize(("name", "kind", "gap"), [("osd_adamw", "adamw", 200), ("osd_sgdproj_gap20", "sgd", 20)])
def test_reaches_the_weights_and_the_subspace_of_the_release(shape, name, kind, gap):
    expected = golden(f"{name}_{shape[0]}x{shape[1]}")
    start, grads = inputs(shape)
    config = OnlineSubspace.Config(rank=2, projector="svd", projection_optimizer=kind, update_proj_gap=gap)
    weight = nn.Parameter(start.clone())
    optimizer = optimizer_of(config, weight)
    for gradient in grads:
        weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(weight.data, expected["W"], rtol=0, atol=2e-6)
    P = optimizer.targets[0].state["P"]
    torch.testing.assert_close(P @ P.T, expected["PPt"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("gradient", [torch.zeros(6, 4), torch.ones(6, 4)], ids=["zero", "rank 1"])
@pytest.mark.parametrize("kind", ["adamw", "sgd", "lion"])
@pytest.mark.fault("F25")
def test_stays_finite(gradient, kind):
    config = OnlineSubspace.Config(rank=3, projector="svd", projection_optimizer=kind, reorth_every=2)
    assert drive(config, torch.ones(6, 4), [gradient] * 5)[-1].isfinite().all()


def test_a_zero_gradient_has_no_slope():
    slope = loss_gradient(torch.eye(4)[:, :2], torch.zeros(4, 6), torch.zeros(2, 6), torch.float32)
    assert not slope.any()


@pytest.mark.parametrize("every", [0, 3])
def test_the_basis_is_made_orthonormal_when_asked_without_turning_round(every):
    config = OnlineSubspace.Config(rank=8, projector="svd", update_proj_gap=20, reorth_every=every)
    weight = nn.Parameter(torch.zeros(16, 24))
    optimizer, bases = optimizer_of(config, weight), []
    for gradient in gradients((16, 24), 6):
        weight.grad = gradient
        optimizer.step()
        bases.append(optimizer.targets[0].state["P"].clone())
        assert optimizer.targets[0].state["P"].is_contiguous()  # as ranks broadcast it for checkpoints
    off = (bases[-1].T @ bases[-1] - torch.eye(8)).abs().max()
    assert (off < 1e-6) == bool(every)
    assert all(((old * new).sum(0) > 0.5).all() for old, new in pairwise(bases))


def test_learns_the_subspace_of_the_gradients():
    """Gradients of rank 3 and noise: an orthonormal basis that begins elsewhere comes to hold them."""
    random = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(16, 3, generator=random)).Q
    config = OnlineSubspace.Config(rank=3, projector="svd", update_proj_gap=50)
    weight = nn.Parameter(torch.zeros(16, 24))
    optimizer, outside = optimizer_of(config, weight), []
    for t in range(300):
        held = torch.randn(16, 24, generator=random) if t == 0 else U @ torch.randn(3, 24, generator=random)
        weight.grad = held
        optimizer.step()
        P = torch.linalg.qr(optimizer.targets[0].state["P"]).Q
        outside.append((U - P @ (P.T @ U)).square().sum().item())
    assert outside[0] > 1
    assert outside[-1] < 0.02


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)], ids=str)
def test_learns_a_matrix(shape):
    config = OnlineSubspace.Config(lr=0.1, rank=4, scale=1.0, projector="svd", update_proj_gap=10)
    assert remaining_error(config, shape=shape) < 0.01
