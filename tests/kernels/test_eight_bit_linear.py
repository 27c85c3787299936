"""The linear in eight bits against float64: how far it is off, by shape and by what its factors are drawn from."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import kernels.eight_bit_linear as eight_bit_module
from kernels.code_product import LONGEST_SUM, product
from kernels.eight_bit_linear import EightBit, eight_bit_linear
from kernels.row_codes import quantize_rows
from kernels.row_codes.reference import decoded

SHAPES = [((3, 40), 64, 96), ((50,), 171, 33), ((1,), 16, 8), ((2, 300), 256, 130)]
"""Batch, in, out."""

DRAWS = {
    "normal": lambda x: x,
    "heavy-tailed": lambda x: x / torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).abs().clamp(min=0.2),
    "outlier columns": lambda x: x * torch.where(torch.arange(x.shape[-1]) % 32 == 5, 30.0, 1.0),
}

BOUNDS = {
    ("int8", "normal"): 0.015,
    ("int8", "heavy-tailed"): 0.03,
    ("int8", "outlier columns"): 0.04,
    ("fp8", "normal"): 0.05,
    ("fp8", "heavy-tailed"): 0.05,
    ("fp8", "outlier columns"): 0.05,
}
"""Largest relative error of a product, in the Frobenius norm."""


def tensors(shape, draw="normal", dtype=torch.float32, seed=0):
    """x, W and the gradient of y."""
    (batch, n_in, n_out), random = shape, torch.Generator().manual_seed(seed)
    sizes = ((*batch, n_in), (n_out, n_in), (*batch, n_out))
    x, W, g = (DRAWS[draw](torch.randn(size, generator=random)).to(dtype) for size in sizes)
    return x.requires_grad_(), W.requires_grad_(), g


def run(x, W, g, how):
    y = eight_bit_linear(x, W, how)
    return (y, *torch.autograd.grad(y, (x, W), g))


def relative(found, exact):
    return float((found.detach().double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_near_those_in_float64(shape, format, draw):
    x, W, g = tensors(shape, draw)
    exact = [t.detach().double() for t in (x, W, g)]
    y, dx, dW = run(x, W, g, EightBit(format))
    flat_x, flat_g = exact[0].flatten(0, -2), exact[2].flatten(0, -2)
    bound = BOUNDS[format, draw]
    assert relative(y, exact[0] @ exact[1].t()) < bound
    assert relative(dx, exact[2] @ exact[1]) < bound
    assert relative(dW, flat_g.t() @ flat_x) < 1e-6
    *_, too = run(x, W, g, EightBit(format, weight_gradient_too=True))
    assert relative(too, flat_g.t() @ flat_x) < 2 * bound  # stochastic rounding has twice the variance and more
    assert not torch.equal(too, dW)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_each_product_is_the_one_that_is_written_down(format):
    x, W, g = tensors(SHAPES[0])
    codes = quantize_rows(W.detach(), format)
    flat_x, flat_g = x.detach().flatten(0, -2), g.flatten(0, -2)
    y, dx, dW = run(x, W, g, EightBit(format))
    expected_y = decoded(quantize_rows(flat_x, format)).double() @ decoded(codes).double().t()
    folded = decoded(quantize_rows(flat_g, format, fold=codes.scales)).double()
    expected_dx = folded @ codes.codes[:, : codes.cols].double()
    assert relative(y.flatten(0, -2), expected_y) < 1e-6
    assert relative(dx.flatten(0, -2), expected_dx) < 1e-6
    assert torch.equal(dW, flat_g.t() @ flat_x)


def test_gradients_are_those_of_finite_differences_of_the_exact_product():
    x, W, g = tensors(((4,), 12, 10))
    exact_x, exact_W = x.detach().double(), W.detach().double()

    def loss(x, W):
        return ((x @ W.t()) * g.double()).sum()

    _, dx, dW = run(x, W, g, EightBit("int8", weight_gradient_too=True))
    for which, found in ((0, dx), (1, dW)):
        numeric = torch.empty_like(found, dtype=torch.float64)
        for index in range(found.numel()):
            step = torch.zeros(found.shape, dtype=torch.float64)
            step.view(-1)[index] = 1e-4
            shifted = [(exact_x + s * step, exact_W) if which == 0 else (exact_x, exact_W + s * step) for s in (1, -1)]
            numeric.view(-1)[index] = (loss(*shifted[0]) - loss(*shifted[1])) / 2e-4
        assert relative(found, numeric) < 0.03


@pytest.mark.parametrize("how", [EightBit("int8"), EightBit("int8", True), EightBit("fp8")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_bits_on_repeat_and_where_activations_are_recomputed(how, dtype):
    x, W, g = tensors(((3, 16), 32, 24), dtype=dtype)
    first = run(x, W, g, how)
    assert [t.dtype for t in first] == [dtype] * 3
    again = run(x, W, g, how)
    y = checkpoint(lambda x: eight_bit_linear(x, W, how), x, use_reentrant=False)
    for a, b, c in zip(first, again, (y, *torch.autograd.grad(y, (x, W), g)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_gradients_keep_the_dtype_of_their_tensors():
    x, W, g = tensors(SHAPES[0])
    y, dx, dW = run(x.detach().bfloat16().requires_grad_(), W, g.bfloat16(), EightBit("int8"))
    assert (y.dtype, dx.dtype, dW.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_only_what_is_asked_for_is_multiplied():
    x, W, g = tensors(SHAPES[0])
    W = W.detach()
    assert torch.autograd.grad(eight_bit_linear(x, W, EightBit("int8")), x, g)[0].shape == x.shape
    x, W = x.detach(), W.requires_grad_()
    assert torch.autograd.grad(eight_bit_linear(x, W, EightBit("int8")), W, g)[0].shape == W.shape


def test_a_token_that_is_not_finite_harms_no_other():
    x, W, _ = tensors(((6,), 20, 10))
    with torch.no_grad():
        x[2, 3] = float("inf")
    y = eight_bit_linear(x, W, EightBit("fp8"))
    assert y.isnan().all(1).tolist() == [False, False, True, False, False, False]
    assert y[[0, 1, 3, 4, 5]].isfinite().all()


def test_stochastic_rounding_of_the_weights_gradient_is_right_on_average():
    """Rounded to nearest, numbers below half a step are lost every time; stochastically, never on average."""
    total, nearest, exact = 0.0, 0.0, 0.0
    for step in range(300):
        g = torch.full((64, 1), 0.002)
        g[0] = 1.0 + step / 300  # 500 times as large: half a step is 0.004
        x = torch.ones(64, 1)
        x[0] = 0
        exact += float(g[1:].sum())
        total += float(EightBit("int8", True).weight_gradient(g, x))
        codes = [quantize_rows(t.t().contiguous(), "int8") for t in (g, x)]
        nearest += float((decoded(codes[0]) * decoded(codes[1])).sum())
    assert abs(total / exact - 1) < 0.05
    assert nearest == 0.0


@pytest.mark.parametrize("how", [EightBit("int8"), EightBit("int8", True), EightBit("fp8")], ids=str)
def test_whatever_the_strides(how):
    """An expanded gradient, as a sum has, and transposed factors."""
    x, W, _ = tensors(((30,), 24, 20))
    straight = run(x, W, torch.ones(30, 20), how)
    turned_x, turned_W = x.detach().t().contiguous().requires_grad_(), W.detach().t().contiguous().requires_grad_()
    y = eight_bit_linear(turned_x.t(), turned_W.t(), how)
    y.sum().backward()
    for found, expected in zip((y, turned_x.grad.t(), turned_W.grad.t()), straight, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("how", [EightBit("int8"), EightBit("int8", True), EightBit("fp8", True)], ids=str)
def test_no_tokens_at_all(how):
    x, W, g = tensors(((0,), 24, 20))
    y, dx, dW = run(x, W, g, how)
    assert (y.shape, dx.shape) == ((0, 20), (0, 24))
    assert torch.equal(dW, torch.zeros(20, 24))


def test_more_tokens_than_a_sum_of_integers_holds(monkeypatch):
    assert LONGEST_SUM * 127**2 < 2**31 <= (LONGEST_SUM + 1) * 127**2
    ones, how = [quantize_rows(torch.ones(1, LONGEST_SUM + 1), "int8")] * 2, EightBit("int8", True)
    with pytest.raises(ValueError, match="may leave 32 bits"):
        product(*ones, torch.float32)
    x, _, g = tensors(((100,), 24, 20))
    monkeypatch.setattr(eight_bit_module, "LONGEST_SUM", 30)
    assert relative(how.weight_gradient(g, x.detach()), g.t() @ x.detach()) < 0.03
    ones = torch.ones(100, 3)
    torch.testing.assert_close(how.weight_gradient(ones, ones), torch.full((3, 3), 100.0))


@pytest.mark.parametrize("trains", [True, False])
def test_the_input_is_kept_for_a_weight_that_trains_alone(trains):
    x, W, _ = tensors(((50,), 24, 20))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        eight_bit_linear(x, W.detach().requires_grad_(trains), EightBit("int8"))
    assert sorted(tensor.dtype.itemsize for tensor in kept) == ([1, 4, 4] if trains else [1, 4])
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in kept) == trains
