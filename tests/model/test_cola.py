"""CoLA against its equation (arXiv 2502.10940), and that it is no matrix."""

import pytest
import torch

from model.linear import CoLA, build_linear


def make(n_in, n_out, rank):
    linear = build_linear(CoLA.Config(rank=rank), n_in, n_out, "layers.0.attention.q_proj")
    linear.reset_parameters(0)
    return linear


def test_output_and_gradients_are_those_of_the_equation():
    """y = B silu(A x), with silu'(z) = s + z s (1 - s) written out; float64."""
    linear = make(9, 7, 4).double()
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, 9, dtype=torch.float64, generator=random).requires_grad_()
    grad_y = torch.randn(5, 7, dtype=torch.float64, generator=random)
    y = linear(x)
    grad_x, grad_A, grad_B = torch.autograd.grad(y, [x, linear.A, linear.B], grad_y)
    A, B, X = linear.A.detach(), linear.B.detach(), x.detach()
    z = X @ A.T
    s = 1 / (1 + torch.exp(-z))
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(y.detach(), (z * s) @ B.T, **close)
    grad_z = (grad_y @ B) * (s + z * s * (1 - s))
    torch.testing.assert_close(grad_x, grad_z @ A, **close)
    torch.testing.assert_close(grad_A, grad_z.T @ X, **close)
    torch.testing.assert_close(grad_B, grad_y.T @ (z * s), **close)


def test_initial_values_are_those_of_the_release():
    """Both factors normal with std (rank (in + out))^-1/4, so that the entries of B A have (in + out)^-1/2."""
    linear = make(300, 500, 64)
    for factor in (linear.A, linear.B):
        scaled = factor.detach() * (64 * 800) ** 0.25
        assert scaled.std().item() == pytest.approx(1, rel=0.02)
        assert abs(scaled.mean().item()) < 0.02
        assert scaled.pow(4).mean().item() == pytest.approx(3, rel=0.06)
    product = (linear.B @ linear.A).detach()
    assert product.std().item() == pytest.approx(800**-0.5, rel=0.03)


def test_is_not_linear():
    linear, x = make(9, 7, 4), torch.ones(1, 9)
    assert not torch.allclose(linear(-x), -linear(x), rtol=1e-2)
