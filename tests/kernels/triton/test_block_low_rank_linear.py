import pytest
import torch

from kernels.block_low_rank_linear import block_low_rank_linear, in_triton, reference
from kernels.block_support import BlockSupport

# tokens, out, in, rank, block, blocks in a block-row
SHAPES = [
    (37, 96, 160, 20, 16, 3),  # a ragged group of block-rows, block-columns of unequal load
    (1, 48, 80, 1, 16, 1),  # some block-columns are empty
    (600, 64, 32, 8, 16, 1),  # several token tiles, and the blocks' gradient is split
    (130, 96, 64, 48, 32, 1),
    (70, 64, 160, 70, 32, 5),
    (100, 64, 192, 32, 64, 2),
    (50, 128, 256, 16, 128, 1),
    (0, 32, 64, 4, 16, 2),
]
NAMES = ("x", "A", "B", "values")


def inputs(shape, dtype, device, x_dtype=None):
    n_tokens, n_out, n_in, rank, block, k = shape
    random = torch.Generator().manual_seed(0)
    columns = BlockSupport.draw((n_out, n_in), block, k, random).columns
    sizes = [(n_tokens, n_in), (rank, n_in), (n_out, rank), (len(columns) * k, block, block)]
    tensors = [torch.randn(size, generator=random).to(dtype) for size in sizes]
    tensors[0] = tensors[0].to(x_dtype or dtype)
    grad_y = torch.randn(n_tokens, n_out, generator=random).to(x_dtype or dtype)
    support = BlockSupport(columns.to(device), (n_out, n_in), block)
    return [t.to(device).requires_grad_() for t in tensors], support, grad_y.to(device)


def run(function, tensors, support, grad_y):
    y = function(*tensors, support, 0.25)
    return [t.cpu() for t in (y.detach(), *torch.autograd.grad(y, tensors, grad_y))]


def exact(tensors, support, grad_y):
    support = BlockSupport(support.columns.cpu(), support.shape, support.block)
    tensors = [t.detach().cpu().double().requires_grad_() for t in tensors]
    return run(reference.block_low_rank_linear, tensors, support, grad_y.cpu().double())


def relative(found, expected):
    return (found.double() - expected).norm() / expected.norm().clamp_min(1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_every_gradient_equal_the_definition(shape, dtype, device):
    tensors, support, grad_y = inputs(shape, dtype, device)
    found, expected = run(block_low_rank_linear, tensors, support, grad_y), exact(tensors, support, grad_y)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype]
    for name, a, b in zip(("y", *NAMES), found, expected, strict=True):
        assert a.dtype == dtype, name
        assert a.shape == b.shape, name
        assert relative(a, b) <= tolerance, name


def test_parameters_in_fp32_and_strided_activations(device):
    tensors, support, grad_y = inputs(SHAPES[0], torch.float32, device, torch.bfloat16)
    expected = exact(tensors, support, grad_y)
    wide = torch.zeros(37, 160 + 16, dtype=torch.bfloat16, device=device)
    wide[:, :160] = tensors[0].detach()
    tensors[0] = wide[:, :160].detach().requires_grad_()
    columns_first = torch.zeros(96, 37, dtype=torch.bfloat16, device=device).copy_(grad_y.t()).t()
    found = run(block_low_rank_linear, tensors, support, columns_first)
    for name, tensor, a, b in zip(("y", *NAMES), tensors[:1] + tensors, found, expected, strict=True):
        assert a.dtype == tensor.dtype, name
        assert relative(a, b) <= 6e-3, name  # the parameters are rounded as well


@pytest.mark.parametrize("wanted", NAMES)
def test_one_gradient_alone(wanted, device):
    tensors, support, grad_y = inputs(SHAPES[0], torch.float32, device)
    everything = dict(zip(("y", *NAMES), run(block_low_rank_linear, tensors, support, grad_y), strict=True))
    for name, tensor in zip(NAMES, tensors, strict=True):
        tensor.requires_grad_(name == wanted)
    y = block_low_rank_linear(*tensors, support, 0.25)
    (grad,) = torch.autograd.grad(y, [tensors[NAMES.index(wanted)]], grad_y)
    assert torch.equal(grad.cpu(), everything[wanted])


@pytest.mark.parametrize("programs", [1, 4, 100])
def test_the_gradient_is_the_same_however_it_is_split(programs, device, monkeypatch):
    monkeypatch.setattr(in_triton, "PROGRAMS", programs)
    tensors, support, grad_y = inputs((1100, 32, 16, 4, 16, 1), torch.float32, device)
    out = torch.empty(2, 16, 16, device=device)
    in_triton.launch_block_gradient(grad_y, tensors[0].detach(), support, out)
    expected = (grad_y.double().t() @ tensors[0].detach().double()).view(2, 16, 16)
    assert relative(out.cpu(), expected.cpu()) <= 1e-6
