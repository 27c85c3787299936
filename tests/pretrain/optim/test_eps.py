"""The constant that guards Adam's root, against the releases' formulas in float64 at small gradients."""

import math
from typing import get_args

import pytest
import torch
from optim_drive import drive

from pretrain.optim.adamw import AdamW8bit
from pretrain.optim.adamw_part import adamw_step, init_adamw
from pretrain.optim.rules import PRESETS

SIDE, STEPS = 64, (1, 10, 100)

WHOLE, BEFORE, AFTER = (1e-6, "galore"), (1e-8, "galore"), (1e-8, "torch")

DEFAULTS = {
    "apollo": (WHOLE, AFTER),
    "apollo_mini": (WHOLE, AFTER),
    "fira": (WHOLE, BEFORE),
    "frugal": (BEFORE, BEFORE),
    "galore_adafactor": (WHOLE, AFTER),
    "galore_adamw": (WHOLE, AFTER),
    "galore_adamw8bit": (WHOLE, AFTER),
    "golore": (WHOLE, AFTER),
    "gradnormlorp": (WHOLE, AFTER),
    "ldadam": (AFTER, AFTER),
    "muon": (AFTER, AFTER),
    "normuon": (AFTER, AFTER),
    "online_subspace": (WHOLE, AFTER),
    "q_galore": (AFTER, AFTER),
    "sara": (WHOLE, AFTER),
    "scale": (BEFORE, BEFORE),
    "sinkgd": (AFTER, AFTER),
    "subtrack": (WHOLE, BEFORE),
}
"""(eps, eps_mode) with moments that are whole or factored, and with those of 8 bits."""

OTHERS = ("muon", "normuon", "scale", "sinkgd")
"""Whose matrices have no Adam."""

QUANTISED = [
    *((name, {"moments": "8bit"}) for name in DEFAULTS if name not in ("ldadam", *OTHERS)),
    ("galore_adamw8bit", {}),
    ("q_galore", {"moments": "fp32"}),
    ("apollo", {"weights": "int8"}),
    ("apollo_mini", {"moments": "8bit", "weights": "int8"}),
]

TOGETHER = {"frugal": {"inactive_lr_scale": 0.0}, "apollo_mini": {"rank": 1}}
"""What leaves the projected update alone."""


def size_of_update(size, step, eps_mode):
    """|N| at `step` of gradients of one size and sign: m = (1 - b1^t) g, v = (1 - b2^t) g^2, and eps is 1e-8."""
    m, root = (1 - 0.9**step) * size, math.sqrt((1 - 0.999**step) * size**2)
    c1, c2 = 1 - 0.9**step, math.sqrt(1 - 0.999**step)
    return m / c1 / (root / c2 + 1e-8) if eps_mode == "torch" else c2 / c1 * m / (root + 1e-8)


@pytest.mark.parametrize(
    ("name", "moments"),
    [(name, kind) for name in PRESETS for kind in get_args(PRESETS[name].Config.model_fields["moments"].annotation)],
)
def test_defaults_of_every_preset_and_moments(name, moments):
    config, right = PRESETS[name].Config(moments=moments), DEFAULTS[name][moments == "8bit"]
    assert (config.eps, config.eps_mode) == right
    own = PRESETS[name].Config(moments=moments, eps=1e-5, eps_mode="galore")
    assert (own.eps, own.eps_mode) == (1e-5, "galore")
    assert PRESETS[name].Config.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("moments", ["fp32", "8bit"])
def test_defaults_of_adamw8bit(moments):
    config = AdamW8bit.Config(moments=moments)
    assert (config.eps, config.eps_mode) == AFTER


@pytest.mark.parametrize(("name", "choices"), QUANTISED)
def test_updates_of_no_quantised_form_are_damped(name, choices):
    config = PRESETS[name].Config(**choices)
    assert config.eps == 1e-8
    assert all(size_of_update(1e-6, step, config.eps_mode) > 0.75 for step in STEPS)


@pytest.mark.parametrize("size", [1e-5, 1e-6])
@pytest.mark.parametrize(("name", "choices"), [case for case in QUANTISED if case[1].get("weights") != "int8"])
def test_updates_at_small_gradients_are_the_releases(name, choices, size):
    """A gradient of constant size: every projection has it whole, and each update is |N| in its own norm."""
    config = PRESETS[name].Config(
        **{"rank": 1, "refresh": "fixed", "projector": "svd", "projection": "fp32"} | TOGETHER.get(name, {}) | choices,
        lr=1.0, scale=1.0, weights="fp32_master", update_proj_gap=10**6,
    )  # fmt: skip
    G = torch.full((SIDE, SIDE), size / SIDE**0.5)
    seen = [torch.zeros(SIDE, SIDE), *drive(config, torch.zeros(SIDE, SIDE), [G] * max(STEPS))]
    tolerance = 0.1 if config.moments == "8bit" else 1e-3  # the codes have 1 and no -1
    for step in STEPS:
        found = (seen[step] - seen[step - 1]).double().norm() / SIDE**0.5
        assert found.item() == pytest.approx(size_of_update(size, step, config.eps_mode), rel=tolerance), step


@pytest.mark.parametrize("size", [1e-5, 1e-6])
@pytest.mark.parametrize(("name", "choices"), QUANTISED)
def test_so_are_those_of_what_is_not_projected(name, choices, size):
    config = PRESETS[name].Config(**choices)
    weight, state = torch.zeros(SIDE, SIDE), init_adamw(config, torch.zeros(SIDE, SIDE))
    for step in range(1, max(STEPS) + 1):
        before = weight.clone()
        adamw_step(config, weight, torch.full_like(weight, size), state, step, 1.0, 0.0, None)
        if step in STEPS:
            found = (weight - before).abs().mean().item()
            assert found == pytest.approx(size_of_update(size, step, config.eps_mode), rel=0.01), step
