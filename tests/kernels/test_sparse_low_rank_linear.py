import pytest
import torch

from kernels.sparse_low_rank_linear import op, reference
from kernels.sparse_low_rank_linear import sparse_low_rank_linear as fused

NAMES = ("x", "A", "B", "values", "bias")

# batch shape, in, out, rank, nnz
SHAPES = [
    ((2, 5), 24, 20, 4, 30),
    ((7,), 64, 171, 5, 321),  # an odd width, like the 5461 of a 1B model
    ((3, 1), 97, 65, 1, 200),
    ((4,), 16, 8, 8, 0),
    ((0,), 16, 8, 2, 5),
]


def inputs(shape, dtype=torch.float64, x_dtype=None, seed=0):
    batch, n_in, n_out, rank, nnz = shape
    random = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=random, dtype=torch.float64)

    indices = torch.randperm(n_in * n_out, generator=random)[:nnz].sort().values.to(torch.int32)
    tensors = [draw(*batch, n_in), draw(rank, n_in), draw(n_out, rank), draw(nnz), draw(n_out)]
    dtypes = [x_dtype or dtype, dtype, dtype, dtype, dtype]
    tensors = [t.to(d).requires_grad_() for t, d in zip(tensors, dtypes, strict=True)]
    return tensors, indices, draw(*batch, n_out)


def run(function, tensors, indices, grad_y, scale=0.25):
    x, A, B, values, bias = tensors
    y = function(x, A, B, values, indices, scale, bias)
    return y, torch.autograd.grad(y, tensors, grad_y.to(y.dtype))


def relative(found, expected):
    expected = expected.double()
    return (found.double() - expected).norm() / expected.norm().clamp_min(1e-30)


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_are_those_of_finite_differences(shape, with_bias):
    (x, A, B, values, bias), indices, _ = inputs((shape[0], 6, 5, min(shape[3], 3), min(shape[4], 9)))
    tensors = (x, A, B, values, bias) if with_bias else (x, A, B, values)
    assert torch.autograd.gradcheck(lambda x, A, B, v, *b: fused(x, A, B, v, indices, 0.3, *b), tensors)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "x_dtype", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-13),
        (torch.float32, torch.float32, 2e-6),
        (torch.bfloat16, torch.bfloat16, 1.5e-2),
        (torch.float32, torch.bfloat16, 1.5e-2),
    ],
)
def test_output_and_every_gradient_equal_the_definition(shape, dtype, x_dtype, tolerance):
    tensors, indices, grad_y = inputs(shape, dtype, x_dtype)
    y, grads = run(fused, tensors, indices, grad_y)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected_y, expected_grads = run(reference.sparse_low_rank_linear, exact, indices, grad_y.to(x_dtype))
    assert y.dtype == x_dtype
    assert y.shape == expected_y.shape
    assert relative(y, expected_y) <= tolerance
    for name, tensor, grad, expected in zip(NAMES, tensors, grads, expected_grads, strict=True):
        assert grad.dtype == tensor.dtype, name
        assert relative(grad, expected) <= tolerance, name


def test_saves_only_its_arguments():
    """No dense matrix may live from the forward to the backward pass."""
    tensors, indices, _ = inputs(SHAPES[1], torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        fused(*tensors[:4], indices, 0.25)
    assert set(saved) <= {t.data_ptr() for t in (*tensors, indices)}


@pytest.mark.parametrize("wanted", NAMES)
def test_one_gradient_alone(wanted):
    tensors, indices, grad_y = inputs(SHAPES[0])
    _, everything = run(fused, tensors, indices, grad_y)
    for name, tensor in zip(NAMES, tensors, strict=True):
        tensor.requires_grad_(name == wanted)
    x, A, B, values, bias = tensors
    y = fused(x, A, B, values, indices, 0.25, bias)
    (grad,) = torch.autograd.grad(y, [tensors[NAMES.index(wanted)]], grad_y)
    assert torch.equal(grad, everything[NAMES.index(wanted)])


def test_a_frozen_input_costs_no_rebuilt_weight(monkeypatch):
    tensors, indices, grad_y = inputs(SHAPES[0])
    tensors[0].requires_grad_(False)
    y = fused(*tensors[:4], indices, 0.25)
    monkeypatch.setattr(op, "_rebuild", lambda *a, **k: pytest.fail("W was rebuilt for nobody"))
    torch.autograd.grad(y, tensors[1:4], grad_y)


def test_never_reads_uninitialised_memory(monkeypatch):
    tensors, indices, grad_y = inputs(SHAPES[0])
    expected = run(fused, tensors, indices, grad_y)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    found = run(fused, tensors, indices, grad_y)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


def test_cannot_be_differentiated_twice():
    tensors, indices, grad_y = inputs(SHAPES[0])
    y = fused(*tensors[:4], indices, 0.25)
    (grad,) = torch.autograd.grad(y, tensors[:1], grad_y.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
