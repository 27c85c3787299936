import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from kernels.block_low_rank_linear import block_low_rank_linear as factored
from kernels.block_low_rank_linear import reference
from kernels.block_support import BlockSupport

NAMES = ("x", "A", "B", "values")

# batch shape, in, out, rank, block, blocks in a block-row
SHAPES = [
    ((2, 5), 32, 48, 4, 16, 1),
    ((7,), 160, 96, 5, 16, 3),  # block-columns of unequal load
    ((3, 1), 64, 192, 20, 32, 2),
    ((4,), 688, 32, 8, 16, 2),  # most block-columns are empty
    ((0,), 32, 48, 4, 16, 2),
]


def inputs(shape, dtype=torch.float64, x_dtype=None, seed=0):
    batch, n_in, n_out, rank, block, k = shape
    random = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=random, dtype=torch.float64)

    support = BlockSupport.draw((n_out, n_in), block, k, random)
    tensors = [draw(*batch, n_in), draw(rank, n_in), draw(n_out, rank), draw(support.n_blocks, block, block)]
    dtypes = [x_dtype or dtype, dtype, dtype, dtype]
    tensors = [t.to(d).requires_grad_() for t, d in zip(tensors, dtypes, strict=True)]
    return tensors, support, draw(*batch, n_out)


def run(function, tensors, support, grad_y, scale=0.25):
    y = function(*tensors, support, scale)
    return y, torch.autograd.grad(y, tensors, grad_y.to(y.dtype))


def relative(found, expected):
    expected = expected.double()
    return (found.double() - expected).norm() / expected.norm().clamp_min(1e-30)


def test_the_dense_matrix_holds_every_block_at_its_place():
    (_, _, _, values), support, _ = inputs(SHAPES[1])
    S = reference.dense(values, support)
    assert S.shape == (96, 160)
    assert S.count_nonzero() == values.numel()
    for i, (row, column) in enumerate((r, c) for r, cs in enumerate(support.columns.tolist()) for c in cs):
        assert torch.equal(S[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16], values[i])


@pytest.mark.parametrize("k", [1, 2])
def test_gradients_are_those_of_finite_differences(k):
    tensors, support, _ = inputs(((3,), 48, 32, 2, 16, k))
    assert torch.autograd.gradcheck(lambda *t: factored(*t, support, 0.3), tensors, fast_mode=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "x_dtype", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-13),
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.bfloat16, 5e-3),
        (torch.float32, torch.bfloat16, 6e-3),  # the parameters are rounded as well
    ],
    ids=str,
)
def test_output_and_every_gradient_equal_the_definition(shape, dtype, x_dtype, tolerance):
    tensors, support, grad_y = inputs(shape, dtype, x_dtype)
    y, grads = run(factored, tensors, support, grad_y)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected_y, expected_grads = run(reference.block_low_rank_linear, exact, support, grad_y.to(x_dtype))
    assert y.dtype == x_dtype
    assert y.shape == expected_y.shape
    assert relative(y, expected_y) <= tolerance
    for name, tensor, grad, expected in zip(NAMES, tensors, grads, expected_grads, strict=True):
        assert grad.dtype == tensor.dtype, name
        assert grad.shape == tensor.shape, name
        assert relative(grad, expected) <= tolerance, name


def test_strides_of_a_view_and_of_the_gradient_of_a_sum():
    tensors, support, _ = inputs(SHAPES[1])
    grads = torch.autograd.grad(factored(*tensors, support, 0.25).sum(), tensors)
    x = tensors[0].detach().t().contiguous().t().requires_grad_()
    again = torch.autograd.grad(factored(x, *tensors[1:], support, 0.25).sum(), [x, *tensors[1:]])
    exact = torch.autograd.grad(reference.block_low_rank_linear(*tensors, support, 0.25).sum(), tensors)
    for one, other, expected in zip(grads, again, exact, strict=True):
        assert relative(one, expected) <= 1e-13
        assert relative(other, expected) <= 1e-13


def test_saves_its_arguments_and_z_alone():
    tensors, support, _ = inputs(SHAPES[1], torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        factored(*tensors, support, 0.25)
    own = {t.data_ptr() for t in tensors}
    assert [t.shape for t in saved if t.data_ptr() not in own] == [(7, 5)]


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        return result


def test_no_dense_matrix_is_built():
    tensors, support, grad_y = inputs(((3,), 512, 512, 8, 16, 1), torch.float32)
    with LargestTensor() as seen:
        run(factored, tensors, support, grad_y)
    assert seen.numel <= support.n_blocks * 16 * 16 + 16 * 16  # the blocks, and one of zeros
    with LargestTensor() as seen:
        run(reference.block_low_rank_linear, tensors, support, grad_y)
    assert seen.numel >= 512 * 512


@pytest.mark.parametrize("wanted", NAMES)
def test_one_gradient_alone(wanted):
    tensors, support, grad_y = inputs(SHAPES[1])
    _, everything = run(factored, tensors, support, grad_y)
    for name, tensor in zip(NAMES, tensors, strict=True):
        tensor.requires_grad_(name == wanted)
    y = factored(*tensors, support, 0.25)
    (grad,) = torch.autograd.grad(y, [tensors[NAMES.index(wanted)]], grad_y)
    assert torch.equal(grad, everything[NAMES.index(wanted)])


def test_under_activation_checkpointing():
    tensors, support, grad_y = inputs(SHAPES[1])
    y, grads = run(factored, tensors, support, grad_y)
    again, grads_again = run(lambda *a: checkpoint(factored, *a, use_reentrant=False), tensors, support, grad_y)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


def test_never_reads_uninitialised_memory(monkeypatch):
    tensors, support, grad_y = inputs(SHAPES[1])
    expected = run(factored, tensors, support, grad_y)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    found = run(factored, tensors, support, grad_y)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


def test_cannot_be_differentiated_twice():
    tensors, support, grad_y = inputs(SHAPES[0])
    y = factored(*tensors, support, 0.25)
    (grad,) = torch.autograd.grad(y, tensors[:1], grad_y.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_shapes_that_do_not_belong_together_are_refused():
    (x, A, B, values), support, _ = inputs(SHAPES[1])
    for wrong in ((x[:, 1:], A, B, values), (x, A[:, 1:], B, values), (x, A, B[1:], values), (x, A, B, values[1:])):
        with pytest.raises(ValueError, match="do not fit a support of 18 blocks of 16 in a 96 x 160 matrix"):
            factored(*wrong, support, 0.25)
