import pytest
import torch
from torch.utils.checkpoint import checkpoint

from kernels.sparse_low_rank_linear import Choice, StepCache, csr, dense, reference, sparse_low_rank_linear
from kernels.support import TileSupport

NAMES = ("x", "A", "B", "values")
CHOICES = {
    "rebuilt": Choice(),
    "layer": Choice(keep="layer"),
    "step": Choice(keep="step"),
    "csr": Choice(path="csr"),
}
every_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)

# batch shape, in, out, rank, nnz
SHAPES = [
    ((2, 5), 24, 20, 4, 30),
    ((7,), 64, 171, 5, 321),  # an odd width, like the 5461 of a 1B model
    ((3, 1), 97, 65, 1, 200),
    ((4,), 16, 8, 8, 0),
    ((0,), 16, 8, 2, 5),
    ((2, 300), 140, 150, 9, 2000),  # several tiles, several chunks of tokens
]


def inputs(shape, dtype=torch.float64, x_dtype=None, seed=0):
    batch, n_in, n_out, rank, nnz = shape
    random = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=random, dtype=torch.float64)

    indices = torch.randperm(n_in * n_out, generator=random)[:nnz].sort().values
    support = TileSupport.from_flat(indices, (n_out, n_in))
    tensors = [draw(*batch, n_in), draw(rank, n_in), draw(n_out, rank), draw(nnz)]
    dtypes = [x_dtype or dtype, dtype, dtype, dtype]
    tensors = [t.to(d).requires_grad_() for t, d in zip(tensors, dtypes, strict=True)]
    return tensors, support, draw(*batch, n_out)


def fused(tensors, support, choice, scale=0.25):
    return sparse_low_rank_linear(*tensors, support, scale, choice=choice, cache=StepCache())


def definition(tensors, support, scale=0.25):
    return reference.sparse_low_rank_linear(*tensors, support.flat(), scale)


def run(function, tensors, *arguments, grad_y):
    y = function(tensors, *arguments)
    return y, torch.autograd.grad(y, tensors, grad_y.to(y.dtype))


def relative(found, expected):
    expected = expected.double()
    return (found.double() - expected).norm() / expected.norm().clamp_min(1e-30)


@every_choice
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_gradients_are_those_of_finite_differences(shape, choice):
    tensors, support, _ = inputs((shape[0], 6, 5, min(shape[3], 3), min(shape[4], 9)))
    assert torch.autograd.gradcheck(lambda *t: fused(t, support, choice), tensors)


@every_choice
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "x_dtype", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-13),
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.bfloat16, 5e-3),
        (torch.float32, torch.bfloat16, 5e-3),
    ],
)
def test_output_and_every_gradient_equal_the_definition(shape, dtype, x_dtype, tolerance, choice):
    if choice.path == "csr" and x_dtype == torch.bfloat16:
        pytest.skip("the CSR path is for fp32")
    tensors, support, grad_y = inputs(shape, dtype, x_dtype)
    y, grads = run(fused, tensors, support, choice, grad_y=grad_y)
    # On the same inputs: what is rounded to bf16 before the layer is not the layer's error.
    exact = [t.detach().to(x_dtype).double().requires_grad_() for t in tensors]
    expected_y, expected_grads = run(definition, exact, support, grad_y=grad_y.to(x_dtype))
    assert y.dtype == x_dtype
    assert y.shape == expected_y.shape
    assert relative(y, expected_y) <= tolerance
    for name, tensor, grad, expected in zip(NAMES, tensors, grads, expected_grads, strict=True):
        assert grad.dtype == tensor.dtype, name
        assert relative(grad, expected) <= tolerance, name


@every_choice
def test_equals_the_definition_when_recomputed(choice):
    """Under activation checkpointing the forward pass runs twice."""
    tensors, support, grad_y = inputs(SHAPES[5])
    expected = run(definition, tensors, support, grad_y=grad_y)
    y = checkpoint(lambda *t: fused(t, support, choice), *tensors, use_reentrant=False)
    grads = torch.autograd.grad(y, tensors, grad_y)
    assert all(relative(a, b) < 1e-13 for a, b in zip((y, *grads), (expected[0], *expected[1]), strict=True))


@every_choice
def test_a_strided_input(choice):
    tensors, support, grad_y = inputs(SHAPES[5])
    expected = run(definition, tensors, support, grad_y=grad_y)
    x, *others = tensors
    strided = x.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    assert not strided.is_contiguous()
    y, grads = run(
        fused, [strided, *others], support, choice, grad_y=grad_y.transpose(0, 1).contiguous().transpose(0, 1)
    )
    assert all(relative(a, b) < 1e-13 for a, b in zip((y, *grads), (expected[0], *expected[1]), strict=True))


@pytest.mark.parametrize(
    ("choice", "extra"),
    [("rebuilt", 0), ("layer", 150 * 140), ("step", 0), ("csr", 600 * 9)],
)
def test_saves_what_the_choice_says(choice, extra):
    """Beside its arguments: nothing, W, nothing, or x A^T. In elements."""
    tensors, support, _ = inputs(SHAPES[5], torch.float32)
    own = {t.untyped_storage().data_ptr() for t in tensors}
    saved = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 4
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fused(tensors[:4], support, CHOICES[choice])
    assert sum(saved.values()) == extra


@every_choice
@pytest.mark.parametrize("wanted", NAMES)
def test_one_gradient_alone(wanted, choice):
    tensors, support, grad_y = inputs(SHAPES[0])
    _, everything = run(fused, tensors, support, choice, grad_y=grad_y)
    for name, tensor in zip(NAMES, tensors, strict=True):
        tensor.requires_grad_(name == wanted)
    (grad,) = torch.autograd.grad(fused(tensors, support, choice), [tensors[NAMES.index(wanted)]], grad_y)
    assert torch.equal(grad, everything[NAMES.index(wanted)])


@pytest.fixture
def count_builds(monkeypatch):
    built = []
    decompress = dense.decompress
    monkeypatch.setattr(dense, "decompress", lambda *a, **k: built.append(1) or decompress(*a, **k))
    return built


@pytest.mark.parametrize(("choice", "builds"), [("rebuilt", 2), ("layer", 1), ("step", 1)])
def test_builds_the_weight_as_often_as_the_choice_says(choice, builds, count_builds):
    tensors, support, grad_y = inputs(SHAPES[0])
    run(fused, tensors, support, CHOICES[choice], grad_y=grad_y)
    assert len(count_builds) == builds


def test_a_frozen_input_costs_no_rebuilt_weight(count_builds):
    tensors, support, grad_y = inputs(SHAPES[0])
    tensors[0].requires_grad_(False)
    y = fused(tensors[:4], support, Choice())
    torch.autograd.grad(y, tensors[1:4], grad_y)
    assert len(count_builds) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gradients_summed_over_micro_steps_equal_the_sum_of_gradients(dtype, count_builds):
    (_, *weights), support, _ = inputs(SHAPES[5], dtype)
    choice, cache = Choice(keep="step", accumulate=True), StepCache()
    expected = None
    for step in range(5):
        (x, *_), _, grad_y = inputs(SHAPES[5], dtype, seed=step)
        exact = [t.detach().double().requires_grad_() for t in (x, *weights)]
        definition(exact, support).backward(grad_y.to(dtype).double())
        grads = [t.grad for t in exact[1:]]
        expected = grads if expected is None else [a + b for a, b in zip(expected, grads, strict=True)]

        cache.last_micro_step = step == 4
        y = sparse_low_rank_linear(x, *weights, support, 0.25, choice=choice, cache=cache)
        y.backward(grad_y.to(dtype))
        assert relative(x.grad, exact[0].grad) < 5e-3
        assert all((weight.grad is None) == (step < 4) for weight in weights[:3])
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]
    for weight, grad in zip(weights[:3], expected, strict=False):
        assert relative(weight.grad, grad) < tolerance
    assert len(count_builds) == 1
    assert cache.dense_grad is None


def test_a_kept_weight_follows_its_parameters():
    tensors, support, _ = inputs(SHAPES[0])
    cache, choice = StepCache(), Choice(keep="step")

    def output():
        return sparse_low_rank_linear(*tensors[:4], support, 0.25, choice=choice, cache=cache).detach()

    before = output()
    with torch.no_grad():
        tensors[3] += 1  # seen by PyTorch's version counter
    after = output()
    assert not torch.equal(before, after)
    tensors[3].data.sub_(1)  # not seen
    assert torch.equal(output(), after)
    cache.clear()
    assert relative(output(), before) < 1e-14


def test_a_kept_weight_is_of_these_parameters_alone():
    tensors, support, _ = inputs(SHAPES[0])
    others, _, _ = inputs(SHAPES[0], seed=1)
    cache, choice = StepCache(), Choice(keep="step")
    for weights in (tensors, others):
        found = sparse_low_rank_linear(tensors[0], *weights[1:4], support, 0.25, choice=choice, cache=cache)
        assert relative(found, definition([tensors[0], *weights[1:4]], support)) < 1e-13


@pytest.mark.parametrize("choice", [Choice(), Choice(path="csr")], ids=["dense", "csr"])
@pytest.mark.parametrize("wrong", range(4), ids=NAMES[:4])
def test_shapes_that_do_not_belong_together_are_refused(wrong, choice):
    tensors, support, _ = inputs(SHAPES[0])
    tensors[wrong] = tensors[wrong][..., :-1].detach()
    with pytest.raises(ValueError, match="x has shape" if wrong == 0 else "do not fit a support of 30 entries"):
        sparse_low_rank_linear(*tensors[:4], support, 0.25, choice=choice)


@every_choice
def test_never_reads_uninitialised_memory(monkeypatch, choice):
    tensors, support, grad_y = inputs(SHAPES[0])
    expected = run(fused, tensors, support, choice, grad_y=grad_y)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    found = run(fused, tensors, support, choice, grad_y=grad_y)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


@every_choice
def test_cannot_be_differentiated_twice(choice):
    tensors, support, grad_y = inputs(SHAPES[0])
    y = fused(tensors[:4], support, choice)
    (grad,) = torch.autograd.grad(y, tensors[:1], grad_y.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_without_sparse_matmuls_the_csr_path_is_not_offered(monkeypatch):
    monkeypatch.setattr(torch.sparse, "sampled_addmm", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no MKL")))
    csr.available.cache_clear()
    assert not csr.available()
    csr.available.cache_clear()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 7), (64, 48)])
def test_a_shuffle_of_channels_transposes(shape, monkeypatch):
    """Whatever the memory of the matrix looks like, and by PyTorch's kernel for channels that lie last."""
    shuffle, seen = torch.channel_shuffle, []

    def watched(pixel: torch.Tensor, groups: int) -> torch.Tensor:
        seen.append(pixel.stride(1))
        return shuffle(pixel, groups)

    monkeypatch.setattr(torch, "channel_shuffle", watched)
    rows, columns = shape
    large = torch.arange(float((rows + 2) * (columns + 3))).view(rows + 2, columns + 3)
    whole = large.flatten()[: rows * columns].view(shape)
    for matrix in (large[2:, 1 : columns + 1], whole, whole.view(columns, rows).t()):
        found = csr.transposed(matrix)
        assert found.is_contiguous()
        assert torch.equal(found, matrix.t())
    assert seen == [1, 1, 1]
