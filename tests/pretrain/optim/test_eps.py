"""The constant that guards Adam's root, against the releases' formulas in float64 at small gradients."""

import math

import pytest
import torch
from optim_drive import drive

from pretrain.optim.element import element_step, init_element
from pretrain.optim.presets import PRESETS

SIDE, STEPS = 64, (1, 10, 100)

QUANTISED = [
    ("galore_adamw8bit", {}),
    ("galore_adamw", {"moments": "8bit"}),
    ("golore", {"moments": "8bit"}),
    ("sara", {"moments": "8bit"}),
    ("q_galore", {}),
    ("q_galore", {"moments": "fp32"}),
    ("apollo", {"moments": "8bit"}),
    ("apollo", {"weights": "int8"}),
    ("apollo_mini", {"moments": "8bit"}),
    ("apollo_mini", {"moments": "8bit", "weights": "int8"}),
]


def bias_corrected(size, step):
    """|N| at `step` of gradients of one size and sign: m = (1 - b1^t) g, v = (1 - b2^t) g^2, eps after correction."""
    m, v = (1 - 0.9**step) * size / (1 - 0.9**step), (1 - 0.999**step) * size**2 / (1 - 0.999**step)
    return m / (math.sqrt(v) + 1e-8)


@pytest.mark.parametrize(("name", "choices"), QUANTISED)
def test_quantised_forms_add_1e8_after_the_correction(name, choices):
    config = PRESETS[name](**choices)
    assert (config.eps, config.eps_mode) == (1e-8, "torch")
    own = PRESETS[name](**choices, eps=1e-5, eps_mode="galore")
    assert (own.eps, own.eps_mode) == (1e-5, "galore")
    assert PRESETS[name].model_validate(config.model_dump()) == config


@pytest.mark.parametrize("name", ["galore_adamw", "golore", "sara", "apollo", "apollo_mini"])
def test_whole_forms_keep_1e6_before_it(name):
    config = PRESETS[name]()
    assert (config.eps, config.eps_mode) == (1e-6, "galore")


@pytest.mark.parametrize("size", [1e-5, 1e-6])
@pytest.mark.parametrize(("name", "choices"), [case for case in QUANTISED if case[1].get("weights") != "int8"])
def test_updates_at_small_gradients_are_the_releases(name, choices, size):
    """A gradient of constant size: every projection has it whole, and each update is |N| in its own norm."""
    config = PRESETS[name](
        **choices, **({} if name == "apollo_mini" else {"rank": 1}), lr=1.0, scale=1.0, weights="fp32_master",
        update_proj_gap=10**6, projection="fp32", refresh="fixed", projector="svd",
    )  # fmt: skip
    G = torch.full((SIDE, SIDE), size / SIDE**0.5)
    seen = [torch.zeros(SIDE, SIDE), *drive(config, torch.zeros(SIDE, SIDE), [G] * max(STEPS))]
    tolerance = 0.1 if config.moments == "8bit" else 1e-3  # the codes have 1 and no -1
    for step in STEPS:
        found = (seen[step] - seen[step - 1]).double().norm() / SIDE**0.5
        assert found.item() == pytest.approx(bias_corrected(size, step), rel=tolerance), step


@pytest.mark.parametrize("size", [1e-5, 1e-6])
@pytest.mark.parametrize(("name", "choices"), QUANTISED)
def test_so_are_those_of_what_is_not_projected(name, choices, size):
    config = PRESETS[name](**choices)
    weight, state = torch.zeros(SIDE, SIDE), init_element(config, torch.zeros(SIDE, SIDE))
    for step in range(1, max(STEPS) + 1):
        before = weight.clone()
        element_step(config, weight, torch.full_like(weight, size), state, step, 1.0, 0.0, None)
        if step in STEPS:
            found = (weight - before).abs().mean().item()
            assert found == pytest.approx(bias_corrected(size, step), rel=0.01), step
