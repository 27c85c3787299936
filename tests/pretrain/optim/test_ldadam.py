"""LDAdam against its equations (arXiv 2410.16103) in float64."""

import pytest
import torch
from optim_drive import SHAPES, drive, gradients, optimizer_of
from support import check_optimizer
from torch import nn
from toy_problem import remaining_error

from model.errors import UserError
from pretrain.optim.rules.ldadam import LDAdam, power_step

SETTINGS = {"lr": 0.001, "betas": (0.908, 0.99), "eps": 1e-8, "weight_decay": 10.0, "rho": 0.908}


def reference(start, grads, rank, feedback, lr, betas, eps, weight_decay, rho):
    """Every matrix formed, in the orientation of the smaller side; E after each step too."""
    right = start.shape[0] > start.shape[1]  # a square matrix is projected from the left, as released
    (beta1, beta2), W = betas, (start.T if right else start).double()
    E, P, m, v, seen = torch.zeros_like(W), None, None, None, []
    for t, G in enumerate(grads, 1):
        A = (G.T if right else G).double() + E
        if t == 1:
            P = torch.linalg.svd(A, full_matrices=False).U[:, :rank]
            rotated = m = v = torch.zeros(rank, A.shape[1], dtype=torch.float64)
            lost = torch.zeros_like(A)
        else:
            mean, square = m / (1 - beta1 ** (t - 1)), v / (1 - beta2 ** (t - 1))
            B = rho * P @ mean + (1 - rho) * A
            new = torch.linalg.qr(B @ (B.T @ P)).Q
            C = new.T @ P
            rotated = C @ m
            lost = P @ m - new @ rotated
            v = (1 - beta2 ** (t - 1)) * ((C * C) @ (square - mean**2) + (C @ mean) ** 2).abs()
            P = new
        R = P.T @ A
        if feedback:
            E = A - P @ R + beta1 / (1 - beta1) * lost
        m = beta1 * rotated + (1 - beta1) * R
        v = beta2 * v + (1 - beta2) * R * R
        N = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
        W = W - lr * weight_decay * W
        W = W - lr * P @ N
        seen.append((W.T if right else W, E))
    return seen


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("rank", [1, 4, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equations(shape, rank, feedback):
    rank = min(rank or min(shape), *shape)
    grads, start = gradients(shape, 12), gradients(shape, 1, seed=1)[0]
    config = LDAdam.Config(rank=rank, projector="svd", error_feedback=feedback, **SETTINGS)
    expected = reference(start, grads, rank, feedback, **SETTINGS)
    for found, (right, _) in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)], ids=str)
def test_the_error_is_what_both_projections_left_out(shape):
    grads, start = gradients(shape, 12), gradients(shape, 1, seed=1)[0]
    weight = nn.Parameter(start.clone())
    optimizer = optimizer_of(LDAdam.Config(rank=4, projector="svd", **SETTINGS), weight)
    for gradient, (_, right) in zip(grads, reference(start, grads, 4, True, **SETTINGS), strict=True):
        weight.grad = gradient
        optimizer.step()
        state = optimizer.targets[0].state
        torch.testing.assert_close(state["error"].double(), right, rtol=1e-4, atol=1e-4)
        assert all(tensor.is_contiguous() for tensor in state.values())  # as ranks broadcast them for checkpoints


def test_without_feedback_there_is_no_error_to_keep():
    optimizer = optimizer_of(
        LDAdam.Config(rank=4, projector="svd", error_feedback=False), nn.Parameter(torch.ones(8, 6))
    )
    assert "error" not in optimizer.targets[0].state


def test_a_power_step_turns_towards_the_leading_singular_vectors():
    G = torch.diag(torch.tensor([8.0, 4.0, 1e-3, 1e-3])) @ torch.linalg.qr(gradients((6, 4), 1)[0]).Q.T
    P = torch.linalg.qr(gradients((4, 2), 1, seed=1)[0]).Q
    for _ in range(4):
        P = power_step(P, torch.zeros(2, 6), G, 0.5, torch.float32)
        torch.testing.assert_close(P.T @ P, torch.eye(2), rtol=0, atol=1e-6)
    assert P[2:].abs().max() < 1e-5


@pytest.mark.parametrize("gradient", [torch.zeros(6, 4), torch.ones(6, 4)], ids=["zero", "rank 1"])
@pytest.mark.parametrize("moments", ["fp32", "bf16", "8bit"])
@pytest.mark.fault("F25")
def test_stays_finite(gradient, moments):
    config = LDAdam.Config(rank=3, projector="svd", moments=moments)
    assert drive(config, torch.ones(6, 4), [gradient] * 5 + gradients((6, 4), 3))[-1].isfinite().all()


def test_refuses_moments_without_a_mean():
    with pytest.raises(UserError, match=r"first moment.*fp32, bf16 or 8bit"):
        check_optimizer(LDAdam.Config(moments="adafactor"))


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)], ids=str)
def test_learns_a_matrix(shape):
    assert remaining_error(LDAdam.Config(lr=0.1, rank=4, projector="svd"), shape=shape) < 0.01
