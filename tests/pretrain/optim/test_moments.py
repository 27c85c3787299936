"""Moments of every kind against independent optimizers on R, and what is done to Adam's direction."""

import pytest
import torch
from optim_drive import SHAPES, drive, gradients

from kernels.adam8bit import Adam8bitState, adam8bit_
from pretrain.optim.moments import direction, init_moments
from pretrain.optim.projector import PROJECTORS
from pretrain.optim.projector.base import Projector
from pretrain.optim.rules.galore import GaLore, GaLoreAdafactor
from pretrain.optim.signs import cautious

CPU = torch.device("cpu")


class Identity(Projector):
    """R is G itself, or its first rows."""

    def basis(self, matrix, G, old, random):
        return torch.eye(matrix.m, matrix.rank)


@pytest.fixture
def identity(monkeypatch):
    monkeypatch.setitem(PROJECTORS, "identity", Identity)
    return {"projector": "identity", "lr": 0.02}


def adamw(eps_mode, start, grads, lr, eps, decay):
    """torch.optim.AdamW without its decay, or Hugging Face's of old; then decay, as GaLore does."""
    W, m, v, seen = start.double().requires_grad_(), 0.0, 0.0, []
    peer = torch.optim.AdamW([W], lr=lr, betas=(0.9, 0.99), eps=eps, weight_decay=0.0)
    for t, G in enumerate(grads, 1):
        if eps_mode == "torch":
            W.grad = G.double()
            peer.step()
        else:
            m = 0.9 * m + 0.1 * G.double()
            v = 0.99 * v + 0.01 * G.double() ** 2
            W.data -= lr * (1 - 0.99**t) ** 0.5 / (1 - 0.9**t) * m / (v.sqrt() + eps)
        W.data *= 1 - lr * decay
        seen.append(W.detach().clone())
    return seen


@pytest.mark.parametrize("eps_mode", ["torch", "galore"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_identity_basis_at_scale_one_is_adamw(shape, eps_mode, identity):
    grads, start = gradients(shape, 12), gradients(shape, 1, seed=1)[0]
    config = GaLore.Config(
        **identity, rank=min(shape), scale=1.0, betas=(0.9, 0.99), eps=0.1, eps_mode=eps_mode, weight_decay=0.5
    )
    expected = adamw(eps_mode, start, grads, 0.02, 0.1, 0.5)
    for found, right in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eps_mode", ["torch", "galore"])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)], ids=str)
def test_8bit_is_8bit_adam_on_the_projected_gradient(shape, eps_mode, identity):
    """As the release runs bitsandbytes: on a tensor of zeros shaped like R, whose value is then projected back."""
    grads, start = gradients(shape, 12), gradients(shape, 1, seed=1)[0]
    right = shape[0] >= shape[1]
    state = Adam8bitState.zeros_for(torch.empty(4, 24))
    W, expected = start.clone(), []
    for t, G in enumerate(grads, 1):
        R = (G.t() if right else G)[:4].contiguous()
        step = torch.zeros_like(R)
        adam8bit_(step, R, state, lr=0.02, betas=(0.9, 0.999), eps=1e-6, step=t, eps_mode=eps_mode)
        (W.t() if right else W)[:4] += 0.25 * step
        W *= 1 - 0.02 * 0.5
        expected.append(W.clone())
    config = GaLore.Config(**identity, rank=4, eps=1e-6, eps_mode=eps_mode, moments="8bit", weight_decay=0.5)
    for found, exact in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def adafactor(start, grads, rank, lr, scale, decay):
    """fairseq's Adafactor on R, factored, without relative steps, scaled parameters or first moment."""
    W, row, col, seen = start.double(), 0.0, 0.0, []
    for t, G in enumerate(grads, 1):
        R = (G.t() if G.shape[0] >= G.shape[1] else G)[:rank].double()
        beta2 = 1 - t**-0.8
        row = beta2 * row + (1 - beta2) * (R**2 + 1e-30).mean(-1)
        col = beta2 * col + (1 - beta2) * (R**2 + 1e-30).mean(-2)
        update = R / torch.outer(row / row.mean(), col).sqrt()
        update = update / max(1.0, update.pow(2).mean().item() ** 0.5)
        W = W - decay * lr * W
        (W.t() if G.shape[0] >= G.shape[1] else W)[:rank] -= lr * scale * update
        seen.append(W.clone())
    return seen


@pytest.mark.parametrize("rank", [1, 4, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adafactor_on_the_projected_gradient(shape, rank, identity):
    rank = min(rank or min(shape), *shape)
    grads, start = [g * (1 + t) for t, g in enumerate(gradients(shape, 12))], gradients(shape, 1, seed=1)[0]
    expected = adafactor(start, grads, rank, 0.02, 0.25, 0.5)
    config = GaLoreAdafactor.Config(**identity, rank=rank, weight_decay=0.5)
    for found, right in zip(drive(config, start, grads), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


def test_bf16_moments_are_rounded_and_the_direction_is_of_the_exact_ones():
    config = GaLore.Config(moments="bf16", betas=(0.9, 0.99))
    state = init_moments(config, (4, 24), CPU)
    for t, R in enumerate(gradients((4, 24), 5), 1):
        m, v = 0.9 * state["exp_avg"].double() + 0.1 * R, 0.99 * state["exp_avg_sq"].double() + 0.01 * R.double() ** 2
        N, c = direction(config, state, R, t, "w")
        torch.testing.assert_close(c * N.double(), c * m / (v.sqrt() + 1e-6), rtol=1e-6, atol=1e-6)
        assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
        torch.testing.assert_close(state["exp_avg"].double(), m, rtol=2**-8, atol=1e-7)
        torch.testing.assert_close(state["exp_avg_sq"].double(), v, rtol=2**-7, atol=1e-12)


def test_the_bf16_second_moment_falls_when_gradients_do():
    """To nearest it would stay for ever: 0.999 v rounds to v."""
    config, exact = GaLore.Config(moments="bf16"), GaLore.Config()
    states = [init_moments(c, (8, 64), CPU) for c in (config, exact)]
    large, small = gradients((8, 64), 2)
    for t in range(1, 1500):
        for c, state in zip((config, exact), states, strict=True):
            direction(c, state, large if t < 20 else 0.01 * small, t, "w")
    found, right = (state["exp_avg_sq"].float().mean() for state in states)
    torch.testing.assert_close(found, right, rtol=0.02, atol=0)


def test_bf16_second_moments_of_equal_matrices_err_by_themselves():
    """All matrices alike are half a place off at worst, and many are right on average; the same name errs alike."""
    config, R = GaLore.Config(moments="bf16"), gradients((4, 24), 1)[0]
    found = []
    for name in [*map(str, range(400)), "0"]:
        state = init_moments(config, (4, 24), CPU)
        direction(config, state, R, 1, name)
        found.append(state["exp_avg_sq"])
    *found, again = found
    assert torch.equal(found[0], again)
    assert not any(torch.equal(found[0], other) for other in found[1:])
    exact = 0.001 * R.double().square()
    assert (torch.stack(found).double().mean(0) / exact - 1).abs().max() < 1e-3


def test_cautious_keeps_what_agrees_with_the_gradient():
    N, R = torch.tensor([[1.0, -2.0, 3.0, 0.0]]), torch.tensor([[2.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(cautious(N, R), torch.tensor([[2.0, 0.0, 6.0, 0.0]]))
    assert not cautious(-R, R).any()


def test_cautious_masks_the_projected_direction(identity):
    start, grads = torch.zeros(16, 24), gradients((16, 24), 6)
    found = drive(GaLore.Config(**identity, rank=4, cautious=True), start, grads)
    m = v = W = torch.zeros(16, 24, dtype=torch.float64)
    for t, (G, now) in enumerate(zip(grads, found, strict=True), 1):
        R = torch.zeros(16, 24, dtype=torch.float64)
        R[:4] = G[:4]
        m, v = 0.9 * m + 0.1 * R, 0.999 * v + 0.001 * R**2
        kept = m * R > 0
        N = torch.where(kept, m / (v.sqrt() + 1e-6), 0) / kept[:4].double().mean()
        W = W - 0.02 * 0.25 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * N
        torch.testing.assert_close(now.double(), W, rtol=1e-6, atol=1e-6)
