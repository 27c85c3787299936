import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.linear_cross_entropy import in_torch, reference
from kernels.linear_cross_entropy import linear_cross_entropy as fused


def inputs(n_tokens=23, dim=16, vocab=37, hidden_dtype=torch.float64, weight_dtype=torch.float64, ignored=5):
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(n_tokens, dim, generator=random, dtype=torch.float64).to(hidden_dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=random, dtype=torch.float64).to(weight_dtype).requires_grad_()
    targets = torch.randint(vocab, (n_tokens,), generator=random)
    targets[torch.randperm(n_tokens, generator=random)[:ignored]] = -100
    return hidden, weight, targets


def relative(found, expected):
    expected = expected.double()
    return (found.double() - expected).norm() / expected.norm().clamp_min(1e-30)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_gradients_are_those_of_finite_differences(chunk):
    hidden, weight, targets = inputs(n_tokens=7, dim=4, vocab=9, ignored=2)
    assert torch.autograd.gradcheck(lambda h, w: fused(h, w, targets, chunk_tokens=chunk), (hidden, weight))


@pytest.mark.parametrize("chunk", [None, 1, 5, 23, 64])
@pytest.mark.parametrize(
    ("hidden_dtype", "weight_dtype", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-13),
        (torch.float32, torch.float32, 2e-6),
        (torch.bfloat16, torch.bfloat16, 1.5e-2),
        (torch.bfloat16, torch.float32, 1.5e-2),
    ],
)
def test_loss_and_both_gradients_equal_the_definition(hidden_dtype, weight_dtype, tolerance, chunk):
    hidden, weight, targets = inputs(hidden_dtype=hidden_dtype, weight_dtype=weight_dtype)
    loss = fused(hidden, weight, targets, chunk_tokens=chunk)
    grads = torch.autograd.grad(loss * 0.125, (hidden, weight))
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    expected = reference.linear_cross_entropy(*exact, targets)
    expected_grads = torch.autograd.grad(expected * 0.125, exact)
    assert loss.shape == ()
    assert loss.dtype == torch.promote_types(hidden_dtype, torch.float32)
    assert relative(loss, expected) <= tolerance
    for tensor, grad, wanted in zip((hidden, weight), grads, expected_grads, strict=True):
        assert grad.dtype == tensor.dtype
        assert relative(grad, wanted) <= tolerance
    assert not grads[0][targets == -100].any()


def test_bf16_weight_gradient_is_summed_over_chunks_in_fp32():
    hidden, weight, targets = inputs(n_tokens=512, hidden_dtype=torch.bfloat16, weight_dtype=torch.bfloat16)
    (many,) = torch.autograd.grad(fused(hidden, weight, targets, chunk_tokens=1), weight)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    (expected,) = torch.autograd.grad(reference.linear_cross_entropy(*exact, targets), exact[1:])
    assert relative(many, expected) <= 6e-3  # summed in bf16 it is 5e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_gradient_by_parts_is_the_same(dtype, monkeypatch):
    hidden, weight, targets = inputs(hidden_dtype=dtype, weight_dtype=dtype)
    (whole,) = torch.autograd.grad(fused(hidden, weight, targets, chunk_tokens=5), weight)
    monkeypatch.setattr(in_torch, "PART_ROWS", 8)  # 37 rows: four whole parts and another of five
    (by_parts,) = torch.autograd.grad(fused(hidden, weight, targets, chunk_tokens=5), weight)
    assert relative(by_parts, whole) <= 1e-6


def test_batches_of_sequences_and_another_ignored_target():
    hidden, weight, targets = inputs(n_tokens=24)
    flat = fused(hidden, weight, targets)
    assert torch.equal(flat, fused(hidden.view(4, 6, -1), weight, targets.view(4, 6)))
    assert torch.equal(flat, fused(hidden, weight, targets.where(targets >= 0, 7).where(targets >= 0, -1), -1))


def test_nothing_to_predict_is_zero_loss_and_zero_gradient():
    hidden, weight, targets = inputs()
    loss = fused(hidden, weight, torch.full_like(targets, -100))
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert loss.item() == 0
    assert not any(grad.any() for grad in grads)


def test_huge_logits_do_not_overflow():
    hidden, weight, targets = inputs(hidden_dtype=torch.float32, weight_dtype=torch.float32)
    loss = fused(hidden * 1e4, weight, targets)
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert all(t.isfinite().all() for t in (loss, *grads))


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_gradient_alone(wanted):
    both = inputs()
    everything = torch.autograd.grad(fused(*both), both[:2])
    alone = inputs()
    alone[1 - wanted].requires_grad_(False)
    (grad,) = torch.autograd.grad(fused(*alone), alone[wanted])
    assert torch.equal(grad, everything[wanted])


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor an operation returns, and how many matmuls were made."""

    def __init__(self):
        super().__init__()
        self.numel = self.matmuls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        self.matmuls += func.overloadpacket == torch.ops.aten.mm
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_of_all_tokens_never_exist(dtype, monkeypatch):
    hidden, weight, targets = inputs(n_tokens=400, vocab=300, hidden_dtype=dtype, weight_dtype=dtype)
    monkeypatch.setattr(in_torch, "LOGITS_BYTES", 50 * 300 * 4)
    monkeypatch.setattr(in_torch, "MIN_CHUNK", 10)
    with LargestTensor() as seen:
        fused(hidden, weight, targets).backward()
    assert seen.numel == 50 * 300


def test_without_gradients_none_are_formed():
    hidden, weight, targets = inputs()
    with torch.no_grad(), LargestTensor() as seen:
        loss = fused(hidden, weight, targets, chunk_tokens=23)
    assert seen.matmuls == 1
    torch.testing.assert_close(loss, fused(hidden, weight, targets).detach())


def test_never_reads_uninitialised_memory(monkeypatch):
    hidden, weight, targets = inputs()
    expected = torch.autograd.grad(fused(hidden, weight, targets, chunk_tokens=5), (hidden, weight))
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, original=original, **k: original(*a, **k).fill_(float("nan")))
    found = torch.autograd.grad(fused(hidden, weight, targets, chunk_tokens=5), (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
