import math

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import kernels.attention as chosen
from kernels.attention import attention, in_torch, reference

BF16 = pytest.param(torch.bfloat16, 8e-3, id="bf16")
DTYPES = [pytest.param(torch.float64, 1e-14, id="fp64"), pytest.param(torch.float32, 1e-6, id="fp32"), BF16]


def inputs(batch=2, heads=4, kv_heads=4, tokens=130, width=48, dtype=torch.float32):
    """q, k, v and a gradient of the output, each a view [B, H, T, E] of [B, T, H, E]."""
    random = torch.Generator().manual_seed(0)

    def draw(heads):
        drawn = torch.randn(batch, tokens, heads, width, generator=random, dtype=torch.float64)
        return drawn.to(dtype).transpose(1, 2)

    return *(draw(n).requires_grad_() for n in (heads, kv_heads, kv_heads)), draw(heads)


def all_of(way, q, k, v, grad):
    """The output and the gradients of q, k and v."""
    y = way(q, k, v)
    return y, *torch.autograd.grad(y, (q, k, v), grad)


def exact(q, k, v, grad):
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    return all_of(reference.attention, *leaves, grad.double())


def errors(found, expected):
    """Relative where there is something, absolute for gradients that are zero (of q and k of a first token)."""
    return [((a.double() - b).norm() / max(b.norm(), 1.0)).item() for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 64, 130, 515])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_output_and_gradients_equal_the_definition(dtype, tolerance, tokens, heads):
    tensors = inputs(2, *heads, tokens, 8, dtype)
    found = all_of(in_torch.attention, *tensors)
    assert [x.dtype for x in found] == [dtype] * 4
    assert [x.shape for x in found] == [tensors[0].shape, *(x.shape for x in tensors[:3])]
    assert max(errors(found, exact(*tensors))) <= tolerance


@pytest.mark.parametrize("width", [1, 48, 128])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_any_width(dtype, tolerance, width):
    tensors = inputs(width=width, dtype=dtype)
    assert max(errors(all_of(in_torch.attention, *tensors), exact(*tensors))) <= tolerance


def test_the_definition_is_pytorchs():
    tensors = inputs(heads=6, kv_heads=2, tokens=9, dtype=torch.float64)
    peer = all_of(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True), *tensors)
    assert max(errors(all_of(reference.attention, *tensors), peer)) <= 1e-14


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=str)
def test_gradients_are_those_of_finite_differences(heads, monkeypatch):
    monkeypatch.setattr(in_torch, "SMALL_BLOCK", 3)
    *leaves, _ = inputs(1, *heads, tokens=7, width=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(in_torch.attention, leaves)


@pytest.mark.parametrize("scale", [1, 30])
def test_bf16_is_as_accurate_as_pytorchs(scale):
    """Over output and gradients; with scores up to 100, too, which bf16 would round to steps of a half."""
    q, k, v, grad = inputs(tokens=256, dtype=torch.bfloat16)
    q = (q.detach() * scale).requires_grad_()
    expected = exact(q, k, v, grad)
    ours, theirs = (
        errors(all_of(way, q, k, v, grad), expected)
        for way in (in_torch.attention, lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True))
    )
    assert math.hypot(*ours) <= 1.1 * math.hypot(*theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=str)
def test_memory_may_lie_in_any_order(heads, dtype):
    tensors = inputs(2, *heads, dtype=dtype)
    expected = all_of(in_torch.attention, *tensors)
    contiguous = [x.detach().contiguous().requires_grad_() for x in tensors]
    assert max(errors(all_of(in_torch.attention, *contiguous), [x.double() for x in expected])) <= 1e-6
    fused = torch.cat([x.detach().transpose(1, 2).flatten(2) for x in tensors[:3]], -1)  # one projection for all three
    widths = [x.shape[1] * x.shape[3] for x in tensors[:3]]
    parts = [x.unflatten(-1, (-1, 48)).transpose(1, 2).requires_grad_() for x in fused.split(widths, -1)]
    assert max(errors(all_of(in_torch.attention, *parts, tensors[3]), [x.double() for x in expected])) <= 1e-6
    ones = torch.ones((), dtype=dtype)
    summed = all_of(in_torch.attention, *tensors[:3], ones.expand_as(tensors[3]))
    assert max(errors(summed, exact(*tensors[:3], ones.expand_as(tensors[3])))) <= 8e-3


def test_what_comes_out_is_laid_out_for_the_linears_around():
    for x in all_of(in_torch.attention, *inputs(heads=4, kv_heads=2)):
        assert x.transpose(1, 2).is_contiguous()


def saved(monkeypatch, tensors, kept_bytes):
    """Output, gradients, and bytes kept for the backward pass beside q, k and v."""
    monkeypatch.setattr(in_torch, "KEPT_BYTES", kept_bytes)
    sizes = []

    def pack(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return all_of(in_torch.attention, *tensors), sum(sizes[3:])


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_kept_is_bounded_and_changes_no_bit(dtype, heads, monkeypatch):
    monkeypatch.setattr(in_torch, "BLOCK_BYTES", 1)  # a part per key head
    tensors = inputs(2, *heads, dtype=dtype)
    everything, most = saved(monkeypatch, tensors, 2**30)
    assert 2 * 4 * 130 * 131 / 2 < most / tensors[0].element_size() < 2 * 4 * 130 * 130
    for limit in (0, most // 2, most - 1):
        found, kept = saved(monkeypatch, tensors, limit)
        assert kept <= limit
        assert bool(kept) == bool(limit)
        assert all(torch.equal(a, b) for a, b in zip(found, everything, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_on_repeat_with_any_threads_and_by_any_parts(dtype, monkeypatch):
    tensors = inputs(tokens=192, dtype=dtype)
    expected = all_of(in_torch.attention, *tensors)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for scores in (1, 2**19):
                monkeypatch.setattr(in_torch, "BLOCK_BYTES", scores)
                found = all_of(in_torch.attention, *tensors)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), (threads, scores)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept(context, monkeypatch):
    q, k, v, _ = inputs()
    expected = in_torch.attention(q, k, v)
    largest = in_torch._Work(q, k).scores_per_head  # a store would have this of every head
    made = []
    new_empty = torch.Tensor.new_empty

    def noted(tensor, *size, **options):
        made.append(new_empty(tensor, *size, **options))
        return made[-1]

    monkeypatch.setattr(torch.Tensor, "new_empty", noted)
    with context():
        assert torch.equal(in_torch.attention(q, k, v), expected)
    assert len(made) == 3  # the output, scores and a product of one block
    assert all(tensor.numel() < q.shape[0] * q.shape[1] * largest for tensor in made)


def test_activations_may_be_recomputed(monkeypatch):
    monkeypatch.setattr(chosen, "in_blocks", lambda q: True)
    tensors = inputs()
    expected = all_of(in_torch.attention, *tensors)
    found = all_of(lambda *qkv: checkpoint(attention, *qkv, use_reentrant=False), *tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_never_reads_uninitialised_memory(dtype, monkeypatch):
    tensors = inputs(heads=4, kv_heads=2, dtype=dtype)
    expected = all_of(in_torch.attention, *tensors)
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(math.nan))
    found = all_of(in_torch.attention, *tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Asked(TorchFunctionMode):
    """Counts calls of PyTorch's attention."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("shape", "dtype", "in_blocks"),
    [
        ((1, 8, 256, 48), torch.float32, True),
        ((1, 1, 512, 8), torch.float32, True),
        ((9, 2, 256, 48), torch.float32, False),
        ((1, 64, 128, 8), torch.float32, False),
        ((1, 8, 257, 48), torch.float32, False),
        ((1, 8, 256, 8), torch.float64, False),
        ((1, 4, 64, 8), torch.bfloat16, chosen._multiplies_bf16()),
        ((9, 2, 64, 8), torch.bfloat16, False),
    ],
    ids=str,
)
def test_pytorchs_own_where_it_is_faster(shape, dtype, in_blocks):
    q, k, v = (torch.randn(shape).to(dtype) for _ in range(3))
    with Asked() as asked:
        found = attention(q, k, v)
    assert asked.count == (not in_blocks)
    assert chosen.in_blocks(q.to("meta")) is in_blocks
    expected = reference.attention(*(x.double() for x in (q, k, v)))
    assert max(errors([found], [expected])) <= 8e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), "must be"),
        (lambda q, k, v: (q, k[:, :3], v), "4 query heads cannot share 3 key heads"),
        (lambda q, k, v: (q, k[:, :0], v), "cannot share 0"),
        (lambda q, k, v: (q, k, v[:, :2]), r"v has shape \(2, 2, 130, 48\); it must be \(2, 4, 130, 48\)"),
        (lambda q, k, v: (q, k[:, :, :9], v), "k has shape"),
        (lambda q, k, v: (q, k.double(), v), "q, k, v must have one dtype"),
        (lambda q, k, v: (q, k, v.to("meta")), "q, k, v must have one device"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        attention(*change(*inputs()[:3]))
