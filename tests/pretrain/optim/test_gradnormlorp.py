"""GradNormLoRP against weight normalisation in float64, and against the released code (arXiv 2412.19616)."""

import pytest
import torch
from golden import golden, inputs
from optim_drive import SHAPES, drive, gradients
from toy_problem import remaining_error

from pretrain.optim.rules.gradnormlorp import GradNormLoRP

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "scale": 0.25, "weight_decay": 0.1}


def reference(start, grads, rank, gap, magnitude, lr, scale, betas, eps, weight_decay):
    """With v stored and, for weight normalisation, its gradients by autograd."""
    v, P, seen = start.double(), None, []
    g = v.norm(dim=1, keepdim=True)
    M, V, M_g, V_g = 0.0, 0.0, 0.0, 0.0
    for t, G in enumerate(grads, 1):
        G = G.double()
        right = G.shape[0] >= G.shape[1]
        if (t - 1) % gap == 0:
            U, _, Vh = torch.linalg.svd(G, full_matrices=False)
            new = Vh[:rank].T if right else U[:, :rank]
            P = new if P is None else new * torch.sign((new * P).sum(0))
        if magnitude == "exact":
            leaves = g.clone().requires_grad_(), v.clone().requires_grad_()
            W = leaves[0] * leaves[1] / leaves[1].norm(dim=1, keepdim=True)
            of_g, of_v = torch.autograd.grad((W * G).sum(), leaves)
        else:
            g = v.norm(dim=1, keepdim=True)
            of_g, of_v = (G * v / g).sum(1, keepdim=True), G
        R = of_v @ P if right else P.T @ of_v
        M, V = betas[0] * M + (1 - betas[0]) * R, betas[1] * V + (1 - betas[1]) * R * R
        M_g, V_g = betas[0] * M_g + (1 - betas[0]) * of_g, betas[1] * V_g + (1 - betas[1]) * of_g**2
        size = lr * (1 - betas[1] ** t) ** 0.5 / (1 - betas[0] ** t)
        N = M / (V.sqrt() + eps)
        v = (v - size * scale * (N @ P.T if right else P @ N)) * (1 - lr * weight_decay)
        g = (g - size * M_g / (V_g.sqrt() + eps)) * (1 - lr * weight_decay)
        seen.append(g * v / v.norm(dim=1, keepdim=True))
    return seen


@pytest.mark.parametrize("magnitude", ["exact", "upstream"])
@pytest.mark.parametrize("rank", [1, 4, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equations(shape, rank, magnitude):
    rank = min(rank or min(shape), *shape)
    grads, start = gradients(shape, 12), gradients(shape, 1, seed=1)[0]
    chosen = {"rank": rank, "magnitude": magnitude, **SETTINGS}
    config = GradNormLoRP.Config(update_proj_gap=5, projector="svd", refresh_stagger=False, **chosen)
    expected = reference(start, grads, gap=5, **chosen)
    for found, right in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)], ids=str)
def test_reaches_the_weights_of_the_release(shape):
    start, grads = inputs(shape)
    config = GradNormLoRP.Config(rank=2, projector="svd", refresh_stagger=False, magnitude="upstream")
    expected = golden(f"gradnormlorp_{shape[0]}x{shape[1]}")["W"]
    torch.testing.assert_close(drive(config, start, grads)[-1], expected, rtol=0, atol=2e-6)


def test_a_magnitude_goes_through_zero():
    """Rows so short that steps of g change their sign: v keeps its direction, which the weight shows reversed."""
    shape = (8, 12)
    start = gradients(shape, 1, seed=1)[0] * 1e-3
    grads = [torch.ones(shape) + gradient for gradient in gradients(shape, 12)]
    chosen = {"rank": 4, "magnitude": "exact", **SETTINGS}
    config = GradNormLoRP.Config(update_proj_gap=5, projector="svd", refresh_stagger=False, **chosen)
    expected = reference(start, grads, gap=5, **chosen)
    signs = torch.stack([(W * start.double()).sum(1).sign() for W in expected])
    assert (signs.min(0).values < 0).any()
    for found, right in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("magnitude", ["exact", "upstream"])
def test_rows_of_zeros_begin_to_move(magnitude):
    start = gradients((8, 12), 1)[0]
    start[3] = 0
    config = GradNormLoRP.Config(rank=8, projector="svd", refresh_stagger=False, magnitude=magnitude)
    seen = drive(config, start, gradients((8, 12), 5, seed=1))
    assert all(W.isfinite().all() and W[3].any() for W in seen)
    assert all(W.isfinite().all() for W in drive(config, start, [torch.zeros(8, 12)] * 3))


def test_bf16_weights_are_rounded_once():
    """To the nearest bf16 of the exact step: what fp32 reaches from the same bf16 weight."""
    start, gradient = gradients((24, 16), 1)[0].bfloat16(), gradients((24, 16), 1, seed=1)[0].bfloat16().float()
    config = GradNormLoRP.Config(rank=4, projector="svd", weights="bf16", refresh_stagger=False)
    in_fp32 = drive(config, start.float(), [gradient])[0]
    assert torch.equal(drive(config, start, [gradient])[0], in_fp32.bfloat16())


@pytest.mark.parametrize("magnitude", ["exact", "upstream"])
@pytest.mark.parametrize("shape", [(16, 24), (24, 16)], ids=str)
def test_learns_a_matrix(shape, magnitude):
    chosen = {"lr": 0.1, "rank": 4, "scale": 1.0, "update_proj_gap": 10, "magnitude": magnitude}
    assert remaining_error(GradNormLoRP.Config(projector="svd", **chosen), shape=shape) < 0.02
