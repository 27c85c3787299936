"""What the optimizer does around its rule: hooks, memory, clipping, skipping, updates inside of the backward pass."""

import pytest
import torch
from optim_drive import optimizer_of
from torch import nn

from pretrain.optim.matrix import Matrix
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.refresh import is_due
from pretrain.optim.rules.galore import GaLore, GaLore8bit

WIDTH, COUNT, RANK = 24, 12, 6


def make(config, seed=0, grad_clip=0.0):
    """A chain of square matrices with a norm between, and its optimizer."""
    torch.manual_seed(seed)
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(COUNT)]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.LayerNorm(WIDTH))])
    named = list(model.named_parameters())
    shape = (WIDTH, WIDTH)
    targets = {name: Matrix(name, shape, "right", config.rank) for name, p in named if p.dim() == 2}
    return model, MatrixOptimizer(named, targets, config, seed=0, grad_clip=grad_clip)


def backward(model, seed):
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(seed))
    (model(x) - x.roll(1, 1)).square().mean().backward()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("micro_steps", [1, 3])
def test_whole_gradients_do_not_coexist(micro_steps):
    config = GaLore.Config(rank=RANK, update_proj_gap=40)
    model, optimizer = make(config)
    alive = []
    for target in optimizer.targets:
        target.weight.parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(t.weight.grad is not None for t in optimizer.targets))
        )
    for step in range(60):
        alive.clear()
        due = sum(is_due(config, index, COUNT, optimizer.updates) for index in range(COUNT))
        for micro in range(micro_steps):
            backward(model, step * 10 + micro)
        optimizer.step()
        assert max(alive) <= due  # counted after the optimizer's own hook
        assert optimizer.most_full_gradients <= due + 1
        assert due <= 1


def test_staggered_refreshes_cover_every_matrix_once_in_a_gap():
    config = GaLore.Config(update_proj_gap=200)
    offsets = []
    for index in range(56):
        steps = [step for step in range(1000) if is_due(config, index, 56, step)]
        assert steps[0] < 20
        later = [step for step in steps if step >= 200]
        assert later == [later[0] + 200 * k for k in range(4)]
        offsets.append(later[0])
    assert sorted(offsets) == [200 + place * 200 // 56 for place in range(56)]
    assert all(sum(is_due(config, index, 56, step) for index in range(56)) <= 3 for step in range(1000))
    wide = [index for index in range(56) if index % 7 > 3]  # of a feed-forward
    assert all(sum(is_due(config, index, 56, step) for index in wide) <= 2 for step in range(1000))
    together = GaLore.Config(update_proj_gap=200, refresh_stagger=False)
    assert [step for step in range(500) if is_due(together, 3, 56, step)] == [0, 200, 400]


@pytest.mark.parametrize(("config", "per_moment"), [(GaLore.Config(rank=RANK), 4), (GaLore8bit.Config(rank=RANK), 1)])
@pytest.mark.parametrize("shape", [(40, 64), (64, 40)])
def test_state_takes_the_bytes_of_the_formula(config, per_moment, shape):
    """Moments 2 r max and basis r min, and for 8-bit moments 8 bytes per block of 256."""
    optimizer = optimizer_of(config, nn.Parameter(torch.zeros(shape)))
    found = sum(tensor.nbytes for _, _, tensor, _ in optimizer.tensors())
    scales = 0 if per_moment == 4 else 2 * 4 * -(-RANK * 64 // 256)
    assert found == 2 * RANK * 64 * per_moment + scales + RANK * 40 * 4


def test_clipping_is_of_the_projected_gradient():
    config = GaLore.Config(rank=RANK, eps_mode="torch", eps=1e3, betas=(0.0, 0.0))  # in proportion to the gradient
    steps = []
    for clip in (0.0, 1e-3):
        model, optimizer = make(config, grad_clip=clip)
        before = weights(model)
        backward(model, 0)
        optimizer.step()
        steps.append([b - a for a, b in zip(before, weights(model), strict=True)])
    assert optimizer.grad_norm > 1e-3
    for free, clipped in zip(*steps, strict=True):
        torch.testing.assert_close(clipped, free * (1e-3 / optimizer.grad_norm), rtol=2e-2, atol=1e-9)
    gradients = torch.cat([t.flatten() for t in steps[0]]) / (config.lr / 1e3)
    assert optimizer.grad_norm > gradients.norm() * 0.2


@pytest.mark.fault("F19")
@pytest.mark.fault("F38")
def test_a_gradient_that_is_not_finite_changes_nothing():
    model, optimizer = make(GaLore.Config(rank=RANK))
    backward(model, 0)
    optimizer.step()

    def kept():
        return [*weights(model), *(t.clone() for _, _, t, _ in optimizer.tensors())]

    before = kept()
    backward(model, 1)
    optimizer.targets[3].sum.read()[0, 0] = float("nan")
    optimizer.step()
    assert not optimizer.applied
    assert optimizer.updates == 1
    assert all(torch.equal(a, b) for a, b in zip(before, kept(), strict=True))
    backward(model, 1)
    optimizer.step()
    assert optimizer.applied
    assert optimizer.low_rank_matrices == COUNT


@pytest.mark.fault("F25")
def test_a_zero_gradient_keeps_the_basis():
    weight = nn.Parameter(torch.ones(WIDTH, WIDTH))
    optimizer = optimizer_of(GaLore.Config(rank=RANK), weight)
    basis = optimizer.targets[0].P.clone()
    (weight * 0.0).sum().backward()
    optimizer.step()
    assert optimizer.kept_bases == 1
    assert torch.equal(optimizer.targets[0].P, basis)


def test_updates_inside_of_the_backward_pass_equal_those_after_it():
    after = GaLore.Config(rank=RANK, update_proj_gap=5)
    inside = after.model_copy(update={"update": "per_layer"})
    (one, first), (other, second) = make(after), make(inside)
    for step in range(12):
        backward(one, step)
        first.step()
        backward(other, step)
        assert all(p.grad is None for p in other.parameters())
        second.step()
        assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-5)
        assert second.low_rank_matrices == COUNT
        assert second.most_full_gradients == 1
    for a, b in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.fault("F38")
def test_inside_of_the_backward_pass_a_bad_gradient_moves_nothing_of_its_own():
    model, optimizer = make(GaLore.Config(rank=RANK, update="per_layer"))
    before = weights(model)
    x = torch.full((8, WIDTH), float("nan"))
    model(x).sum().backward()
    optimizer.step()
    assert (optimizer.applied, optimizer.partly_applied, optimizer.updates) == (False, False, 0)
    # The last bias has a gradient of ones, which comes after one that is not finite.
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("weights_kind", ["bf16", "bf16_stochastic"])
def test_bf16_weights_follow_fp32_ones(weights_kind):
    """Steps below half a unit in the last place: rounding to nearest loses them, stochastic rounding does not."""
    moved = {}
    for kind, dtype in (("fp32_master", torch.float32), (weights_kind, torch.bfloat16)):
        weight = nn.Parameter(torch.ones(64, 64, dtype=dtype))
        config = GaLore.Config(rank=64, scale=1.0, lr=1e-4, weights=kind, projector="svd")
        optimizer = optimizer_of(config, weight)
        direction = torch.eye(64) + 0.1
        for _ in range(20):
            (weight * direction.to(dtype)).sum().backward()
            optimizer.step()
        moved[kind] = (weight.float() - 1).mean().item()
    if weights_kind == "bf16":
        assert moved["bf16"] == 0
    else:
        assert moved["bf16_stochastic"] == pytest.approx(moved["fp32_master"], rel=0.15)
