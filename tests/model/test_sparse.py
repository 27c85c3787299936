"""The sparse linear without factors: its equation on every path, and its initial values."""

import pytest
import torch
from growing import copy_into, empty, logits, shape, trained

from kernels.sparse_low_rank_linear.choice import Choice
from kernels.sparse_low_rank_linear.csr import available
from model.build import shape_of_model
from model.counts import count_parameters, projection_shapes
from model.errors import UserError
from model.growth.linears import grow_linears
from model.growth.tensors import GrownTensor
from model.linear import Sparse, build_linear
from model.linear.sparse import erdos_renyi_unit

N_IN, N_OUT = 150, 260  # several tiles
PATHS = [Choice(), Choice(keep="layer"), Choice(keep="step"), Choice(keep="step", accumulate=True), Choice(path="csr")]


def make(density=0.1, **changes):
    linear = build_linear(Sparse.Config(density=density), N_IN, N_OUT, "layers.0.attention.q_proj", **changes)
    linear.reset_parameters(0)
    return linear


@pytest.mark.parametrize("choice", PATHS, ids=lambda choice: f"{choice.path}-{choice.keep}-{choice.accumulate}")
def test_output_and_gradients_are_those_of_the_equation(choice):
    """y_i = sum over the support of v x_j and the gradients dv = dy_i x_j, written entry by entry in float64."""
    linear = make()
    if choice.path == "csr":  # fp32 alone
        if not available():
            pytest.skip("this build of PyTorch multiplies no sparse matrices")
        dtype, close = torch.float32, {"rtol": 1e-4, "atol": 1e-5}
    else:
        dtype, close = torch.float64, {"rtol": 1e-11, "atol": 1e-11}
    linear.to(dtype).support.choice = choice
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, N_IN, dtype=dtype, generator=random).requires_grad_()
    grad_y = torch.randn(3, 4, N_OUT, dtype=dtype, generator=random)
    y = linear(x)
    grad_x, grad_values = torch.autograd.grad(y, [x, linear.values], grad_y)
    rows, columns = linear.support.flat().long() // N_IN, linear.support.flat().long() % N_IN
    v, X, G = linear.values.detach().double(), x.detach().double(), grad_y.double()
    wanted = torch.zeros_like(G).index_add(2, rows, v * X[..., columns])
    torch.testing.assert_close(y.detach().double(), wanted, **close)
    torch.testing.assert_close(grad_x.double(), torch.zeros_like(X).index_add(2, columns, v * G[..., rows]), **close)
    torch.testing.assert_close(grad_values.double(), (G[..., rows] * X[..., columns]).sum((0, 1)), **close)


@pytest.mark.parametrize("density", [0.05, 0.6])
def test_the_matrix_starts_with_the_variance_of_a_dense_one(density):
    linear = make(density, init_std=0.03)
    weight, bound = linear.dense_weight(), 0.03 * (3 / density) ** 0.5
    assert (weight != 0).float().mean().item() == pytest.approx(density, abs=1e-3)
    assert weight.std().item() == pytest.approx(0.03, rel=0.05)
    assert 0.99 * bound < linear.values.abs().max() < 1.001 * bound
    assert linear.values.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert set(linear.state_dict()) == {"values", "support.loc", "support.tile_ptr"}


def test_a_density_without_entries_is_refused():
    with pytest.raises(UserError, match=r"linear\.density 1e-05 leaves layers\.0\.attention\.q_proj .* without"):
        make(1e-5)


ER = Sparse.Config(density=0.2, densities="erdos_renyi")


def densities(config, **changes):
    """By projection, of a model of two layers; and the part of all entries."""
    linears = {n: m for n, m in shape_of_model(shape(2, **changes), config).named_modules() if isinstance(m, Sparse)}
    numels = {name: module.in_features * module.out_features for name, module in linears.items()}
    entries = {name: module.values.numel() for name, module in linears.items()}
    assert sum(entries.values()) == pytest.approx(config.density * sum(numels.values()), abs=len(linears))
    return {name: entries[name] / numels[name] for name in linears}


def test_erdos_renyi_shares_the_density_out_by_the_shapes_of_a_block():
    """In proportion to (in + out) / (in out), and all of them together as dense as asked for."""
    found = densities(ER)
    unit = {name: found[f"layers.{layer}.{name}"] for layer in (0, 1) for name in projection_shapes(shape(2))}
    for name, (n_in, n_out) in projection_shapes(shape(2)).items():
        unit[name] /= (n_in + n_out) / (n_in * n_out)
    assert max(unit.values()) == pytest.approx(min(unit.values()), rel=2e-3)
    assert (
        found["layers.1.attention.k_proj"] > found["layers.1.attention.q_proj"] > found["layers.1.feed_forward.up_proj"]
    )


def test_a_projection_that_would_be_more_than_full_is_full():
    found = densities(Sparse.Config(density=0.7, densities="erdos_renyi"))
    assert found["layers.0.attention.k_proj"] == 1
    assert 0.7 < found["layers.0.attention.q_proj"] < 1
    assert erdos_renyi_unit(0.5, [(10, 10), (1, 20)]) == pytest.approx((60 - 20) / 20)


def test_erdos_renyi_is_counted_and_grows():
    """The planner's count is the model's; more density keeps the function."""
    new = Sparse.Config(density=0.4, densities="erdos_renyi")
    small, large = trained(ER, 2), empty(new, 2)
    assert count_parameters(small.config, ER)["total"] == sum(p.numel() for p in small.parameters())
    tensors = (GrownTensor(*item) for item in small.state_dict().items())
    copy_into(large, grow_linears(tensors, large.config, ER, new, seed=0))
    torch.testing.assert_close(logits(large), logits(small), rtol=1e-5, atol=1e-5)
    assert densities(new)["layers.0.attention.k_proj"] == large.layers[0].attention.k_proj.values.numel() / (64 * 32)
