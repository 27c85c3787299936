"""SCALE against its algorithm in float64: matrices, embedding, head and norms of one small model."""

import pytest
import torch
from optim_drive import drive, gradients, optimizer_of
from torch import nn

from pretrain.optim.matrix import Matrix
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.normalised_part import inverse_rms
from pretrain.optim.rules.scale import Scale

SHAPES = {
    "layers.0.up.weight": (24, 16),
    "layers.0.q.weight": (16, 16),
    "tok_embeddings.weight": (40, 16),
    "lm_head.weight": (40, 16),
    "norm.weight": (16,),
}
LR, SCALE, DECAY, STEPS = 0.02, 0.5, 0.1, 6


def reference(name, start, grads):
    """Arithmetic of the release, line by line, in float64."""
    W, B, m, v = start.double(), 0.0, 0.0, 0.0
    for t, G in enumerate(grads, 1):
        G = G.double()
        if G.dim() == 1:
            m, v = 0.9 * m + 0.1 * G, 0.999 * v + 0.001 * G**2
            W = W - LR * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v**0.5 + 1e-8)
            continue
        if name == "lm_head.weight":
            G = B = 0.9 * B + 0.1 * G
        rms = (G**2).mean(0 if name == "tok_embeddings.weight" else 1, keepdim=True) ** 0.5
        W = (1 - LR * SCALE * DECAY) * W - LR * SCALE * G / rms.clamp(min=1e-8)
    return W


def model(**settings):
    """Parameters by name, and their optimizer."""
    config = Scale.Config(lr=LR, scale=SCALE, weight_decay=DECAY, **settings)
    named = {name: nn.Parameter(gradients(shape, 1, seed=1)[0]) for name, shape in SHAPES.items()}
    targets = {name: Matrix(name, SHAPES[name], "left", 1) for name in SHAPES if name.startswith("layers")}
    return named, MatrixOptimizer(list(named.items()), targets, config, seed=0)


def train(named, optimizer, steps=STEPS):
    grads = {name: gradients(shape, steps, seed=len(name)) for name, shape in SHAPES.items()}
    for step in range(steps):
        sum((parameter * grads[name][step]).sum() for name, parameter in named.items()).backward()
        optimizer.step()
    return grads


@pytest.mark.parametrize("update", ["step", "per_layer"])
def test_equals_the_release(update):
    named, optimizer = model(update=update)
    start = {name: parameter.detach().clone() for name, parameter in named.items()}
    grads = train(named, optimizer)
    for name, parameter in named.items():
        expected = reference(name, start[name], grads[name])
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-5, msg=name)


def test_the_head_and_the_norms_alone_have_state():
    _, optimizer = model()
    found = {name: tensor.shape for name, _, tensor, _ in optimizer.tensors()}
    assert found == {
        "lm_head.weight.momentum_buffer": (40, 16),
        "norm.weight.exp_avg": (16,),
        "norm.weight.exp_avg_sq": (16,),
    }
    _, optimizer = model(momentum=0.0)
    assert {name.rpartition(".")[0] for name, *_ in optimizer.tensors()} == {"norm.weight"}


@pytest.mark.parametrize(("moments", "tolerance"), [("bf16", 0.01), ("8bit", 0.05)])
def test_the_heads_momentum_in_fewer_bits_follows_that_in_fp32(moments, tolerance):
    heads = []
    for kind in ("fp32", moments):
        named, optimizer = model(moments=kind)
        train(named, optimizer)
        heads.append(named["lm_head.weight"].detach() - gradients(SHAPES["lm_head.weight"], 1, seed=1)[0])
    difference = (heads[1] - heads[0]).norm() / heads[0].norm()
    assert 0 < difference < tolerance


def test_each_row_of_a_step_has_rms_lr():
    start, grads = torch.zeros(24, 16), gradients((24, 16), 1)
    moved = drive(Scale.Config(lr=0.5), start, [grads[0] * torch.logspace(-6, 3, 24)[:, None]])[0]
    torch.testing.assert_close(moved.square().mean(1).sqrt(), torch.full((24,), 0.5))


def test_the_factor_is_bounded_where_a_row_is_nothing():
    assert inverse_rms(torch.zeros(3, 4), 1).tolist() == [[1e8]] * 3
    assert inverse_rms(torch.full((3, 4), 2.0), 0).tolist() == [[0.5] * 4]


def test_only_a_vector_travels():
    optimizer = optimizer_of(Scale.Config(), nn.Parameter(torch.zeros(24, 16)))
    assert optimizer.rule.message_shapes(optimizer.targets[0].matrix) == {"scaling": (24, 1)}
