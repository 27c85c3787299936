import pytest
import torch

from kernels.sparse_low_rank_linear import Choice, StepCache, reference, sparse_low_rank_linear
from kernels.support import TileSupport

NAMES = ("x", "A", "B", "values")
CHOICES = {
    "rebuilt": Choice(),
    "fused": Choice(fused=True),
    "layer": Choice(keep="layer", fused=True),
    "step": Choice(keep="step"),
}
# tokens, in, out, rank, nnz
SHAPES = [(37, 130, 141, 24, 900), (12, 171, 64, 1, 300), (3, 16, 8, 8, 0)]


def inputs(shape, dtype, x_dtype, device, seed=0):
    tokens, n_in, n_out, rank, nnz = shape
    random = torch.Generator().manual_seed(seed)
    indices = torch.randperm(n_in * n_out, generator=random)[:nnz].sort().values
    support = TileSupport.from_flat(indices.to(device), (n_out, n_in))
    sizes = [(tokens, n_in), (rank, n_in), (n_out, rank), (nnz,)]
    tensors = [torch.randn(size, generator=random).to(dtype) for size in sizes]
    tensors = [tensors[0].to(x_dtype), *tensors[1:]]
    grad_y = torch.randn(tokens, n_out, generator=random).to(x_dtype)
    return [t.to(device).requires_grad_() for t in tensors], support, grad_y.to(device)


def exact(tensors, support, grad_y, x_dtype):
    wide = [t.detach().to(x_dtype).double().cpu().requires_grad_() for t in tensors]
    y = reference.sparse_low_rank_linear(*wide, support.flat().cpu(), 0.25)
    return y, torch.autograd.grad(y, wide, grad_y.double().cpu())


def relative(found, expected):
    return (found.double().cpu() - expected).norm() / expected.norm().clamp_min(1e-30)


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize(
    ("dtype", "x_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_every_gradient_equal_the_definition(shape, dtype, x_dtype, choice, device):
    tensors, support, grad_y = inputs(shape, dtype, x_dtype, device)
    y = sparse_low_rank_linear(*tensors, support, 0.25, choice=choice, cache=StepCache())
    grads = torch.autograd.grad(y, tensors, grad_y)
    expected_y, expected = exact(tensors, support, grad_y, x_dtype)
    tolerance = 1e-6 if x_dtype == torch.float32 else 5e-3
    assert relative(y, expected_y) <= tolerance
    for name, tensor, grad, right in zip(NAMES, tensors, grads, expected, strict=True):
        assert grad.dtype == tensor.dtype, name
        assert relative(grad, right) <= tolerance, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_summed_over_micro_steps(dtype, device):
    tensors, support, _ = inputs(SHAPES[0], dtype, dtype, device)
    _, A, B, values = tensors
    choice, cache = Choice(keep="step", accumulate=True), StepCache()
    total = None
    for step in range(4):
        (x, *_), _, grad_y = inputs(SHAPES[0], dtype, dtype, device, seed=step + 1)
        _, (_, *grads) = exact([x, A, B, values], support, grad_y, dtype)
        total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
        cache.last_micro_step = step == 3
        y = sparse_low_rank_linear(x, A, B, values, support, 0.25, choice=choice, cache=cache)
        y.backward(grad_y)
    tolerance = 1e-6 if dtype == torch.float32 else 5e-3
    for tensor, expected in zip((A, B, values), total, strict=False):
        assert relative(tensor.grad, expected) <= tolerance


def test_equal_inputs_give_equal_bits(device):
    tensors, support, grad_y = inputs(SHAPES[0], torch.bfloat16, torch.bfloat16, device)

    def once():
        y = sparse_low_rank_linear(*tensors, support, 0.25, choice=CHOICES["fused"])
        return y, *torch.autograd.grad(y, tensors, grad_y)

    first = once()
    for _ in range(2 if device.type == "cpu" else 100):
        assert all(torch.equal(a, b) for a, b in zip(once(), first, strict=True))
