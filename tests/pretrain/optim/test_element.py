"""AdamW of the parameters that are not projected, against its equations in float64."""

import pytest
import torch

from pretrain.optim.element import element_step, init_element
from pretrain.optim.rules.galore import GaLoreAdamW, GaLoreAdamW8bit


def reference(start, grads, config, weight_decay, cautious):
    W, m, v, (b1, b2) = start.double(), 0.0, 0.0, config.betas
    for t, g in enumerate(grads, 1):
        g = g.double()
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        c1, c2 = 1 - b1**t, 1 - b2**t
        if config.eps_mode == "torch":
            N = (m / c1) / ((v / c2).sqrt() + config.eps)
        else:
            N = c2**0.5 / c1 * m / (v.sqrt() + config.eps)
        if cautious:
            mask = (N * g > 0).double()
            N = N * mask / mask.mean().clamp(min=1e-3)
        W = (W - config.lr * N) * (1 - config.lr * weight_decay)
    return W


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("eps_mode", ["galore", "torch"])
def test_equals_the_equations(eps_mode, weight_decay, cautious):
    config = GaLoreAdamW(eps_mode=eps_mode, eps=1e-3, betas=(0.9, 0.95), cautious=cautious)
    random = torch.Generator().manual_seed(0)
    grads = [torch.randn(7, 9, generator=random) for _ in range(12)]
    weight = torch.randn(7, 9, generator=random)
    expected = reference(weight, grads, config, weight_decay, cautious)
    state = init_element(config, weight)
    for step, gradient in enumerate(grads, 1):
        element_step(config, weight, gradient.clone(), state, step, config.lr, weight_decay, None)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cautious", [False, True])
def test_large_tensors_keep_8_bit_moments_and_small_ones_do_not(cautious):
    config = GaLoreAdamW8bit(cautious=cautious)
    large, small = torch.ones(64, 64), torch.ones(63, 65)
    assert init_element(config, large)["exp_avg"].dtype == torch.uint8
    assert init_element(config, small)["exp_avg"].dtype == torch.float32
    state = init_element(config, large)
    grads = [torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    expected = reference(large, grads, config, 0.0, cautious)
    for step, gradient in enumerate(grads, 1):
        element_step(config, large, gradient, state, step, config.lr, 0.0, None)
    difference = (large.double() - expected).norm() / (expected - 1).norm()
    assert difference < 0.1
