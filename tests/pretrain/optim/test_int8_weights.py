"""Weights in 8-bit codes under every preset: they train, are rounded by key, and do so alike however a step is cut."""

import pytest
import torch
from int8_drive import codes_step, drive_codes, int8_linear, optimizer_of_codes
from memory import LiveMemory
from optim_drive import drive, gradients
from torch import nn

from pretrain.optim.matrix import Matrix
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.rules import PRESETS
from pretrain.optim.weight import Int8Weight

EVERY = pytest.mark.parametrize("name", PRESETS)
SHAPES = [(24, 16), (16, 24), (5, 300)]


def small(name, shape=(24, 16), **settings):
    default = PRESETS[name].Config()
    rank, scale = min(default.rank, 4, *shape), max(default.scale, 0.25)
    return PRESETS[name].Config(**{"rank": rank, "update_proj_gap": 3, "weights": "int8", "scale": scale} | settings)


@EVERY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_follows_fp32_weights_with_the_same_bits_each_time(name, shape):
    """Fp32 weights under the same gradients go far, and codes stay within the noise of rounding once a step."""
    start, grads = int8_linear(gradients(shape, 1, seed=1)[0]).dense_weight(), gradients(shape, 7)
    first, second = (drive_codes(small(name, shape, lr=0.2), start, grads) for _ in range(2))
    exact = drive(small(name, shape, lr=0.2).model_copy(update={"weights": "fp32_master"}), start, grads)
    for step, (now, again, expected) in enumerate(zip(first, second, exact, strict=True), 1):
        assert torch.equal(now, again)
        noise = int8_linear(expected).scales.max() / 2
        assert (now - expected).square().mean().sqrt() < 1.5 * noise * step**0.5
    assert (exact[-1] - start).square().mean().sqrt() > 5 * noise


@EVERY
def test_least_squares(name):
    """A tenth of the loss or less, of a matrix in noise-free data, at a rate that falls to 0."""
    X, target = gradients((64, 16), 1, seed=2)[0], gradients((24, 16), 1, seed=3)[0]
    linear, steps = int8_linear(torch.zeros(24, 16)), 300
    optimizer = optimizer_of_codes(small(name, lr=0.2, weight_decay=0.0, update_proj_gap=20), linear)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / steps)
        loss = (linear(X) - X @ target.t()).square().mean()
        (loss + 0.0 * optimizer.elements[0].parameter.sum()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


@EVERY
def test_micro_steps_are_summed(name):
    """For a `projected` rule projections, for a `full` one whole gradients: the update is that of the sum."""
    start, grads = gradients((24, 16), 1, seed=1)[0], gradients((24, 16), 6)
    pairs = [grads[:2], grads[2:4], grads[4:]]
    found = []
    for batches in ([[a + b] for a, b in pairs], pairs):
        linear = int8_linear(start)
        optimizer = optimizer_of_codes(small(name), linear)
        for batch in batches:
            codes_step(optimizer, linear, batch)
        found.append(linear.dense_weight())
    moved = (found[0] - int8_linear(start).dense_weight()).norm()
    # Last bits of a sum decide a few roundings; a lost or doubled micro-step would be a difference as large as `moved`.
    assert (found[0] - found[1]).norm() < 0.1 * moved + linear.scales.max()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inside_of_the_backward_pass_everything_moves(name, dtype):
    linear = int8_linear(gradients((24, 16), 1, seed=1)[0])
    optimizer = optimizer_of_codes(small(name, update="per_layer"), linear)
    norm = optimizer.elements[0].parameter
    before = linear.dense_weight(), norm.detach().clone()
    for gradient in gradients((24, 16), 2):
        linear(torch.eye(16, dtype=dtype)).mul(gradient.t()).sum().backward()
        (norm * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        assert optimizer.targets[0].weight.grad is None
        assert norm.grad is None
        optimizer.step()
    assert (linear.dense_weight() != before[0]).float().mean() > 0.5
    assert (norm != before[1]).all()


def test_inside_of_the_backward_pass_equals_after_it():
    start, grads = gradients((24, 16), 1, seed=1)[0], gradients((24, 16), 7)
    after, inside = (drive_codes(small("q_galore", update=update), start, grads) for update in ("step", "per_layer"))
    assert torch.equal(after[-1], inside[-1])


def test_clipping_is_of_the_projected_gradient():
    """Of steps in proportion to the gradient."""
    config = small("galore_adamw", eps_mode="torch", eps=1e3, betas=(0.0, 0.0), lr=10.0)
    gradient = gradients((24, 16), 1)[0]
    moved = []
    for clip in (0.0, 0.1):
        linear = int8_linear(torch.zeros(24, 16))
        optimizer = optimizer_of_codes(config, linear, clip)
        codes_step(optimizer, linear, [gradient])
        moved.append(linear.dense_weight().norm())
    assert optimizer.grad_norm > 5
    assert moved[1].item() == pytest.approx(moved[0].item() * 0.1 / optimizer.grad_norm, rel=0.03)


@pytest.mark.fault("F19")
def test_a_gradient_that_is_not_finite_changes_no_code():
    linear = int8_linear(gradients((24, 16), 1)[0])
    optimizer = optimizer_of_codes(small("q_galore"), linear)
    codes = linear.codes.clone()
    codes_step(optimizer, linear, [torch.full((24, 16), float("nan"))])
    assert not optimizer.applied
    assert torch.equal(linear.codes, codes)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_steps_below_half_a_code_need_stochastic_rounding(rounding, monkeypatch):
    """400 steps of a fiftieth of a code towards a target two codes away arrive, or do not move at all."""
    if rounding == "nearest":
        changing = Int8Weight.changing
        monkeypatch.setattr(Int8Weight, "changing", lambda weight, key: changing(weight, None))
    start = gradients((32, 32), 1, seed=1)[0]
    linear = int8_linear(start)
    step = linear.scales.mean().item()
    target = linear.dense_weight() + 2 * step * torch.sign(gradients((32, 32), 1, seed=2)[0])
    config = small("galore_adamw", rank=32, scale=1.0, projector="svd", update_proj_gap=50, betas=(0.0, 0.999))
    optimizer = optimizer_of_codes(config, linear)
    optimizer.param_groups[0]["lr"] = step / 50
    first = (linear.dense_weight() - target).square().mean().item()
    for _ in range(400):
        loss = (linear(torch.eye(32)).t() - target).square().sum() / 2
        (loss + 0.0 * optimizer.elements[0].parameter.sum()).backward()
        optimizer.step()
    last = (linear.dense_weight() - target).square().mean().item()
    assert last < 0.3 * first if rounding == "stochastic" else last > 0.9 * first


def test_the_key_is_of_seed_step_and_name():
    linear = int8_linear(gradients((24, 16), 1)[0])
    keys = []
    for seed, name, updates in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", 0)):
        optimizer = optimizer_of_codes(small("q_galore"), linear)
        optimizer.seed, optimizer.updates, optimizer.targets[0].name = seed, updates, name
        keys.append(optimizer._key(optimizer.targets[0]))
    assert len(set(keys)) == 4
    assert keys[0] == keys[-1]


def peak_of_a_step(count):
    """Bytes made and alive at once in an ordinary step of q_galore over `count` matrices, and those of one in fp32."""
    size = 128
    linears = {f"w{i}": int8_linear(gradients((size, size), 1, seed=i)[0], f"w{i}") for i in range(count)}
    matrices = {name: Matrix(name, (size, size), "left", 4) for name in linears}
    named = [("norm.weight", nn.Parameter(torch.ones(3)))]
    config = small("q_galore", (size, size), refresh_stagger=False, update_proj_gap=50)
    optimizer = MatrixOptimizer(named, matrices, config, 0, int8_linears=linears)
    for step in range(2):
        named[0][1].grad = torch.ones(3)
        memory = LiveMemory()
        memory.ignore(*(t for linear in linears.values() for t in linear.buffers()))
        memory.ignore(*(t for _, _, t, _ in optimizer.tensors()), named[0][1], named[0][1].grad)
        for linear in linears.values():
            linear(torch.eye(size)).sum().backward()
        memory.ignore(*(t.sum.read() for t in optimizer.targets if step))
        with memory:
            optimizer.step()
    return memory.peak, 4 * size * size


def test_one_matrix_at_a_time_is_in_fp32():
    (two, matrix), (eight, _) = (peak_of_a_step(count) for count in (2, 8))
    assert two > matrix
    assert eight - two < matrix / 2


def test_weights_take_little_more_than_a_byte_per_element():
    shape = (512, 1376)
    with LiveMemory() as memory:
        linear = int8_linear(torch.zeros(shape))
    assert memory.live < 1.03 * shape[0] * shape[1]
    assert sum(t.nbytes for t in linear.state_dict().values()) == memory.live
