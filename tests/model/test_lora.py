"""The frozen matrix and its low-rank change, against the same in float64."""

import pytest
import torch

from model.build import build_model
from model.config import ModelConfig
from model.counts import count_parameters, training_flops
from model.linear import Dense, Lora, build_linear
from model.linear.from_dense import approximate

NAME, SCALE = "layers.0.attention.q_proj", 3.0 / 4
MODEL = ModelConfig(dim=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=37, vocab_size=50)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(**changes):
    linear = build_linear(Lora.Config(rank=4, alpha=3.0, **changes), 23, 37, NAME)
    linear.reset_parameters(0)
    return linear


def test_output_and_gradients_are_the_equations_in_float64():
    linear = make()
    with torch.no_grad():
        linear.B.copy_(drawn(37, 4))
    W, A, B = (t.detach().double() for t in (linear.weight, linear.A, linear.B))
    x = drawn(5, 23, seed=1).float().requires_grad_()
    dy = drawn(5, 37, seed=2)
    y = linear(x)
    y.backward(dy.float())
    torch.testing.assert_close(y.double(), x.double() @ (W + SCALE * B @ A).T, rtol=1e-5, atol=1e-5)
    G = dy.T @ x.detach().double()
    torch.testing.assert_close(linear.B.grad.double(), SCALE * G @ A.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear.A.grad.double(), SCALE * B.T @ G, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), dy @ (W + SCALE * B @ A), rtol=1e-4, atol=1e-4)


def test_it_begins_as_a_dense_linear_of_its_name_and_only_the_factors_train():
    linear, dense = make(), build_linear(Dense.Config(), 23, 37, NAME)
    dense.reset_parameters(0)
    assert torch.equal(linear.dense_weight(), dense.weight)
    assert {name for name, _ in linear.named_parameters()} == {"A", "B"}
    assert linear.A.abs().max() <= 23**-0.5
    assert linear.state_dict().keys() == {"A", "B", "weight"}
    assert linear.to(torch.bfloat16).weight.dtype == torch.bfloat16


def test_the_frozen_matrix_counts_in_total_and_has_no_gradient_to_compute():
    config, built = Lora.Config(rank=4), {"seed": 0, "device": "meta", "compute_dtype": torch.float32}
    model = build_model(MODEL, config, param_dtype=torch.float32, **built)
    counted, dense = count_parameters(MODEL, config), count_parameters(MODEL, Dense.Config())["total"]
    assert counted["trainable"] == sum(p.numel() for p in model.parameters())
    assert counted["total"] == sum(t.numel() for t in model.state_dict().values())
    assert counted["dense_equivalent"] == dense
    assert Lora.training_flops(config, 23, 37, 10) == 10 * (4 * 23 * 37 + 6 * 4 * (23 + 37))
    assert training_flops(MODEL, config, 2, 5)["executed"] < 2 * training_flops(MODEL, Dense.Config(), 2, 5)["executed"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dense_weight_is_taken_as_it_is(dtype):
    linear, weight = build_linear(Lora.Config(rank=4), 23, 37, NAME), drawn(37, 23).to(dtype)
    found = approximate(linear, weight, 0)
    assert torch.equal(linear.dense_weight(), weight.float())
    assert (found.rank, found.entries, found.error) == (4, 0, 0.0)
    linear(torch.ones(2, 23)).sum().backward()
    assert linear.B.grad.any()
