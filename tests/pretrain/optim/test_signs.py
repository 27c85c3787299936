"""What a gradient's signs and the weight's direction do to an update: golden numbers, and equations in float64."""

import pytest
import torch
from golden import golden, inputs
from int8_drive import drive_codes, int8_linear
from optim_drive import drive, gradients
from support import check_optimizer
from torch import nn

from model.errors import UserError
from pretrain.optim.adamw import AdamW8bit
from pretrain.optim.orthograd import orthogonal
from pretrain.optim.own_optimizer import OwnOptimizer
from pretrain.optim.rules.apollo import Apollo
from pretrain.optim.rules.fira import Fira
from pretrain.optim.rules.galore import GaLore
from pretrain.optim.rules.muon import Muon
from pretrain.optim.rules.sinkgd import SinkGD
from pretrain.optim.signs import grams

AS_RELEASED = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-6, "eps_mode": "galore", "moments": "fp32"}


def elements(config, start, grads):
    """The weight in the end, as a parameter that takes AdamW."""
    weight = nn.Parameter(start.clone())
    optimizer = OwnOptimizer([("w", weight)], config, seed=0)
    for G in grads:
        (weight * G).sum().backward()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(("option", "name"), [("grams", "grams_4x6"), ("cautious", "cautious_adamw_4x6")])
def test_equals_the_release(option, name):
    start, grads = inputs((4, 6))
    found = elements(AdamW8bit.Config(**AS_RELEASED, **{option: True}), start, grads)
    torch.testing.assert_close(found, golden(name)["W"], rtol=0, atol=2e-6)


def test_orthograd_before_sgd_equals_the_release():
    W, grads = inputs((4, 6))
    for G in grads:
        W = W - 0.01 * orthogonal(W, G)
    torch.testing.assert_close(W, golden("orthograd_sgd_4x6")["W"], rtol=0, atol=2e-6)


def test_grams_gives_the_projected_direction_the_signs_of_r():
    N, R = torch.tensor([[1.0, -2.0, 3.0, 4.0]]), torch.tensor([[2.0, 1.0, -1.0, 0.0]])
    assert grams(N, R).tolist() == [[1.0, 2.0, -3.0, 0.0]]
    G = gradients((16, 24), 1)[0]
    for option, way in ((False, -1), (True, 1)):  # momentum alone would go on as before
        first, second = drive(GaLore.Config(rank=4, grams=option), torch.zeros(16, 24), [G, -0.5 * G])
        assert torch.sign(((second - first) * G).sum()) == way


@pytest.mark.parametrize("update", ["step", "per_layer"])
def test_orthograd_is_before_the_optimizer_of_a_parameter(update):
    start, grads = gradients((16, 24), 2)[1], gradients((16, 24), 6, seed=3)
    found = elements(AdamW8bit.Config(**AS_RELEASED, orthograd=True, update=update), start, grads)
    W, m, v = start.double(), 0.0, 0.0
    for t, G in enumerate(grads, 1):
        g = turned(W, G.double())
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        W = W - 0.01 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v**0.5 + 1e-6)
    torch.testing.assert_close(found.double(), W, rtol=1e-5, atol=1e-6)


def turned(W, G):
    """The gradient's part that is orthogonal to W, as long as the gradient."""
    rest = G - (W * G).sum() / (W * W).sum() * W
    return rest * G.norm() / rest.norm()


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)], ids=str)
@pytest.mark.parametrize("update", ["step", "per_layer"])
def test_orthograd_is_before_the_rule_of_a_matrix(shape, update):
    start, grads = gradients(shape, 1, seed=1)[0], gradients(shape, 3)
    common = {"lr": 0.2, "scale": 0.5, "weight_decay": 0.0}
    found = drive(SinkGD.Config(**common, orthograd=True, update=update), start, grads)
    for before, G, now in zip([start, *found], grads, found, strict=False):
        expected = drive(SinkGD.Config(**common), before, [turned(before.double(), G.double()).float()])[0]
        torch.testing.assert_close(now, expected, rtol=1e-5, atol=1e-5)


def test_orthograd_reads_codes_too():
    start, grads = int8_linear(gradients((24, 16), 1, seed=1)[0]).dense_weight(), gradients((24, 16), 1)
    config = Muon.Config(lr=2.0, weight_decay=0.0, orthograd=True)
    exact = drive(config, start, grads)[0]
    found = drive_codes(config.model_copy(update={"weights": "int8"}), start, grads)[0]
    assert (found - exact).norm() < 0.1 * (exact - start).norm()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Fira.Config(cautious=True, grams=True), r"optimizer\.cautious has no effect beside optimizer\.grams"),
        (AdamW8bit.Config(cautious=True, grams=True), r"optimizer\.cautious has no effect beside optimizer\.grams"),
        (Apollo.Config(grams=True), r"optimizer\.grams changes nothing .* set it to false"),
        (Muon.Config(grams=True), r"optimizer\.grams = true has no effect with optimizer\.name = \"muon\""),
        (GaLore.Config(orthograd=True), r"optimizer\.orthograd = true has no effect .*; it is for adamw8bit"),
    ],
)
def test_what_has_no_effect_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        check_optimizer(config)
