"""The sparse linear without factors: its equation on every path, and its initial values."""

import pytest
import torch

from kernels.sparse_low_rank_linear.choice import Choice
from kernels.sparse_low_rank_linear.csr import available
from model.errors import UserError
from model.linear import Sparse, build_linear

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
