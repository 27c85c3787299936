"""What every preset must do, whatever its rule: a new preset is tested here from the day it is in PRESETS."""

import pytest
import torch
from optim_drive import SHAPES, drive, gradients, optimizer_of
from torch import nn

from model.seeding import derive_seed
from pretrain.optim import moments
from pretrain.optim.matrix import Matrix, projected_side
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.rules import PRESETS

EVERY = pytest.mark.parametrize("name", PRESETS)


def small(name, shape=(16, 16), **settings):
    """The preset at a rank that fits, with a new basis every three steps."""
    rank = min(PRESETS[name].Config().rank, 4, *shape)
    return PRESETS[name].Config(**{"rank": rank, "update_proj_gap": 3} | settings)


@EVERY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_bits_again_and_a_change_at_every_step(name, shape):
    start, grads = gradients(shape, 1, seed=1)[0], gradients(shape, 7)
    first, second = (drive(small(name, shape), start, grads) for _ in range(2))
    for before, now, again in zip([start, *first], first, second, strict=False):
        assert torch.equal(now, again)
        assert now.isfinite().all()
        assert not torch.equal(now, before)


@EVERY
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)], ids=str)
def test_least_squares(name, shape):
    """A tenth of the loss or less, of a matrix in noise-free data, at a rate that falls to 0."""
    X, target = gradients((64, shape[1]), 1, seed=2)[0], gradients(shape, 1, seed=3)[0]
    weight, steps = nn.Parameter(torch.zeros(shape)), 400
    optimizer = optimizer_of(small(name, shape, lr=0.2, weight_decay=0.0, update_proj_gap=20), weight)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / steps)
        loss = (X @ (weight - target).t()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


@EVERY
@pytest.mark.parametrize("moments", ["fp32", "bf16", "8bit"])
def test_state_keeps_its_shapes(name, moments):
    weight = nn.Parameter(torch.zeros(16, 24))
    optimizer = optimizer_of(small(name, (16, 24), moments=moments), weight)
    fresh = {key: (owner, tensor.shape, tensor.dtype) for key, owner, tensor, _ in optimizer.tensors()}
    for gradient in gradients((16, 24), 7):
        (weight * gradient).sum().backward()
        optimizer.step()
        assert fresh == {key: (owner, tensor.shape, tensor.dtype) for key, owner, tensor, _ in optimizer.tensors()}
    assert all(tensor.isfinite().all() for _, _, tensor, _ in optimizer.tensors() if tensor.is_floating_point())


WEAK = {
    "zero": lambda G: torch.zeros_like(G),
    "rank 1": lambda G: torch.outer(G[:, 0], G[0]),
    "one entry": lambda G: torch.zeros_like(G).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(1.0)),
    "tiny": lambda G: 1e-30 * G,
}


@EVERY
@pytest.mark.parametrize("weak", WEAK)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.fault("F25")
def test_no_gradient_makes_a_weight_that_is_not_finite(name, shape, weak):
    start, grads = gradients(shape, 1, seed=1)[0], gradients(shape, 8)
    for order in ([0, 1, 2, 3], [2, 3, 0, 1]):  # first of all, or after proper ones; then proper ones again
        chosen = [WEAK[weak](grads[i]) if i < 2 else grads[i] for i in order] + grads[4:]
        seen = drive(small(name, shape), start, chosen)
        assert all(weight.isfinite().all() for weight in seen)
        assert not torch.equal(seen[-1], seen[-2])


@EVERY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradients_order_in_memory_is_nothing_to_it(name, shape):
    found = []
    for layout in (lambda G: G, lambda G: G.t().contiguous().t()):
        weight = nn.Parameter(gradients(shape, 1, seed=1)[0])
        optimizer = optimizer_of(small(name, shape), weight)
        for gradient in gradients(shape, 7):
            weight.grad = layout(gradient)
            optimizer.step()
        found.append(weight.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@EVERY
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)], ids=str)
def test_a_bf16_weight_is_rounded_by_key(name, shape):
    start, grads = gradients(shape, 1, seed=1)[0].bfloat16(), gradients(shape, 7)
    config = small(name, shape, weights="bf16_stochastic")
    first, second = (drive(config, start, grads)[-1] for _ in range(2))
    exact = drive(small(name, shape), start.float(), [G.bfloat16().float() for G in grads])[-1]
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, second)
    assert (first.float() - exact).norm() < 0.02 * exact.norm()


def twins(config, shape, start):
    """Two matrices of equal contents, and their optimizer."""
    side = projected_side(shape, config.proj_type, PRESETS[config.name].square_side)
    named = [(name, nn.Parameter(start.clone())) for name in ("a", "b")]
    targets = {name: Matrix(name, shape, side, config.rank) for name, _ in named}
    return named, MatrixOptimizer(named, targets, config, seed=0)


def step_twins(named, optimizer, grads):
    for gradient in grads:
        for _, parameter in named:
            (parameter * gradient).sum().backward()
        optimizer.step()


def keeps_adam(name):
    """Whether its state of a matrix is Adam's moments."""
    config = small(name)
    matrix = Matrix("w", (16, 16), "left", config.rank)
    return "exp_avg_sq" in PRESETS[name](config).init_state(matrix, torch.device("meta"))


@pytest.mark.parametrize("name", filter(keeps_adam, PRESETS))
def test_equal_matrices_round_their_bf16_moments_by_themselves_and_resume_exactly(name):
    shape, (start, *grads) = (16, 24), gradients((16, 24), 7)
    config = small(name, shape, moments="bf16", refresh_stagger=False, projector="svd", refresh="fixed")
    named, optimizer = twins(config, shape, start)
    step_twins(named, optimizer, grads[:3])
    kept = {key: tensor.clone() for key, _, tensor, _ in optimizer.tensors()}
    assert not torch.equal(kept["a.exp_avg_sq"], kept["b.exp_avg_sq"])

    again, resumed = twins(config, shape, start)
    for (_, parameter), (_, trained) in zip(again, named, strict=True):
        parameter.data.copy_(trained)
    for key, _, _, put in list(resumed.tensors()):
        put(kept[key])
    for count in resumed.counts:
        setattr(resumed, count, getattr(optimizer, count))
    for pair, which in ((named, optimizer), (again, resumed)):
        step_twins(pair, which, grads[3:])
    assert all(torch.equal(tensor, found) for (_, tensor), (_, found) in zip(named, again, strict=True))


@pytest.mark.parametrize("name", ["ldadam", "subtrack", "galore_adamw", "fira", "frugal"])
def test_no_rounding_of_bf16_moments_has_the_numbers_of_another(name, monkeypatch):
    """Not those of another step or matrix, nor the rotation those of the step that follows it."""
    seeds = []

    def record(*parts):
        seeds.append(derive_seed(*parts))
        return seeds[-1]

    monkeypatch.setattr(moments, "derive_seed", record)
    shape, (start, *grads) = (16, 24), gradients((16, 24), 6)
    config = small(name, shape, moments="bf16", rotate_moments=True, update_proj_gap=1)
    named, optimizer = twins(config, shape, start)
    step_twins(named, optimizer, grads)
    assert len(seeds) >= 2 * (5 + 4)
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("name", ["apollo", "frugal", "sara"])
def test_random_bases_differ_by_matrix_and_refresh(name):
    shape, (start, gradient) = (16, 24), gradients((16, 24), 2)
    named, optimizer = twins(small(name, shape, update_proj_gap=1), shape, start)
    seen = []
    for _ in range(3):
        step_twins(named, optimizer, [gradient])
        seen += [target.P.clone() for target in optimizer.targets]
    assert not any(torch.equal(P, other) for i, P in enumerate(seen) for other in seen[:i])
