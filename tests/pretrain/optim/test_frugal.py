"""FRUGAL against its equations (arXiv 2411.07837) in float64."""

import pytest
import torch
from optim_drive import SHAPES, drive, gradients
from support import check_optimizer

from model.errors import UserError
from pretrain.optim.projector import PROJECTORS
from pretrain.optim.projector.base import Projector
from pretrain.optim.rules.frugal import Frugal

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "inactive_lr_scale": 0.5}


def reference(start, grads, rank, gap, lr, betas, eps, weight_decay, inactive_lr_scale):
    """In left form: rows are projected. Moments and their bias correction restart with the basis."""
    right = start.shape[0] >= start.shape[1]
    W, P, seen = (start.t() if right else start).double(), None, []
    for t, G in enumerate(grads):
        G = (G.t() if right else G).double()
        if t % gap == 0:
            M, V, age = 0.0, 0.0, 0
            new = torch.linalg.svd(G, full_matrices=False).U[:, :rank]
            P = new if P is None else new * torch.sign((new * P).sum(0))
        age += 1
        R = P.t() @ G
        M = betas[0] * M + (1 - betas[0]) * R
        V = betas[1] * V + (1 - betas[1]) * R * R
        N = (1 - betas[1] ** age) ** 0.5 / (1 - betas[0] ** age) * M / (V.sqrt() + eps)
        outside = (G - P @ R).sign() if rank < G.shape[0] else 0.0
        W = W - lr * weight_decay * W
        W = W - lr * (P @ N) - lr * inactive_lr_scale * outside
        seen.append(W.t() if right else W)
    return seen


@pytest.mark.parametrize("moments", ["fp32", "8bit"])
@pytest.mark.parametrize("rank", [1, 4, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equations(shape, rank, moments):
    rank = min(rank or min(shape), *shape)
    grads, start = gradients(shape, 12, seed=10), gradients(shape, 1, seed=1)[0]
    config = Frugal.Config(
        rank=rank, update_proj_gap=5, projector="svd", refresh_stagger=False, moments=moments, **SETTINGS
    )  # fmt: skip
    tolerance = 1e-6 if moments == "fp32" else 5e-3  # quarter of a step
    expected = reference(start, grads, rank=rank, gap=5, **SETTINGS)
    for found, right in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=tolerance, atol=tolerance)


class Columns(Projector):
    """Every other row of G in left form."""

    def basis(self, matrix, G, old, random):
        return torch.eye(matrix.m)[:, ::2][:, : matrix.rank].contiguous()


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16], ids=str)
def test_what_the_basis_selects_exactly_leaves_nothing_outside(products, monkeypatch):
    from pretrain.optim import matrix_optimizer

    monkeypatch.setitem(PROJECTORS, "columns", Columns)
    built = matrix_optimizer.MatrixOptimizer.__init__
    monkeypatch.setattr(
        matrix_optimizer.MatrixOptimizer, "__init__", lambda *args, **named: built(*args, **named, products=products)
    )
    W = drive(Frugal.Config(rank=8, projector="columns", lr=0.5), torch.zeros(16, 24), gradients((16, 24), 1))[0]
    torch.testing.assert_close(W.abs(), torch.full((16, 24), 0.5), rtol=1e-2, atol=0)


def test_moments_that_rotate_do_not_restart():
    start, grads = torch.zeros(16, 24), gradients((16, 24), 4)
    reset, kept = (
        drive(Frugal.Config(rank=4, projector="svd", update_proj_gap=3, rotate_moments=rotate), start, grads)
        for rotate in (False, True)
    )
    assert torch.equal(reset[2], kept[2])
    assert not torch.allclose(reset[3], kept[3])


def test_8bit_moments_that_restart_need_galores_eps():
    with pytest.raises(UserError, match="eps_mode galore"):
        check_optimizer(Frugal.Config(moments="8bit", eps_mode="torch"))


def test_a_basis_must_be_orthonormal():
    with pytest.raises(UserError, match=r"orthonormal.*choose another"):
        check_optimizer(Frugal.Config(projector="gaussian"))
