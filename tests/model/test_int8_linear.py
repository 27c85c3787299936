"""The dense linear in 8-bit codes: the map of its dequantised weight, and a gradient that goes to a sink."""

import gc
from weakref import WeakValueDictionary

import pytest
import torch
import torch.nn.functional as F
from int8_drive import int8_linear
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.build import build_model, support_checksum
from model.config import ModelConfig
from model.errors import UserError
from model.linear import LowRank
from model.linear import int8 as module
from model.linear.dense import Dense
from model.linear.int8 import Int8Linear

SHAPES = [(37, 23), (24, 256), (9, 300), (5, 1)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def collecting(weight):
    linear, found = int8_linear(weight), []
    linear.sink = found.append
    return linear, found


def model_of(int8, seed=0, compute_dtype=torch.float32, param_dtype=torch.float32, **options):
    shape = ModelConfig(dim=32, n_layers=2, n_heads=2, ffn_dim=53, vocab_size=64, max_seq_len=16)
    dtypes = {"param_dtype": param_dtype, "compute_dtype": compute_dtype}
    return build_model(shape, Dense.Config(), seed=seed, device="cpu", int8=int8, **dtypes, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward_are_those_of_a_dense_linear_with_the_dequantised_weight(shape, dtype):
    linear, found = collecting(normal(*shape))
    x, other = (normal(2, 3, shape[1], seed=1).to(dtype).requires_grad_() for _ in range(2))
    weight = linear.dense_weight().to(dtype).requires_grad_()
    y, expected = linear(x), F.linear(other, weight)
    dy = normal(2, 3, shape[0], seed=2).to(dtype)
    y.backward(dy)
    expected.backward(dy)
    tolerance = {"rtol": 1e-6, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    assert y.dtype == x.grad.dtype == found[0].dtype == dtype
    for ours, reference in ((y, expected), (x.grad, other.grad), (found[0], weight.grad)):
        torch.testing.assert_close(ours, reference, **tolerance)
    assert len(found) == 1


def test_an_input_that_needs_no_gradient_still_gives_the_weight_its_own():
    linear, found = collecting(normal(8, 6))
    x = normal(4, 6)
    linear(x).sum().backward()
    torch.testing.assert_close(found[0], torch.ones(4, 8).t() @ x)


def test_under_activation_checkpointing_the_sink_is_called_once_a_layer():
    for x in (normal(4, 6), normal(4, 6).requires_grad_()):
        (one, first), (two, second) = collecting(normal(6, 6)), collecting(normal(6, 6, seed=1))
        block = nn.Sequential(one, nn.SiLU(), two)
        block(x).square().sum().backward()
        checkpoint(block, x, use_reentrant=False).square().sum().backward()
        for found in (first, second):
            assert len(found) == 2
            assert torch.equal(*found)


def test_without_gradients_it_saves_nothing_and_without_a_sink_it_does_not_train():
    linear = int8_linear(normal(8, 6))
    with torch.no_grad():
        assert linear(normal(4, 6)).grad_fn is None
    for x in (normal(4, 6), normal(4, 6).requires_grad_()):
        with pytest.raises(RuntimeError, match="w: nothing takes the gradient of its codes"):
            linear(x).sum().backward()


def test_linears_share_their_scratch_and_nothing_outlives_them(monkeypatch):
    monkeypatch.setattr(module, "_scratch", WeakValueDictionary())
    linears = [int8_linear(normal(21, 13, seed=seed)) for seed in range(3)] + [int8_linear(normal(30, 21))]
    for _ in range(2):  # the last one is the largest, and makes the memory that all use from then on
        for linear in linears:
            linear(torch.ones(2, linear.in_features))
    (memory,) = module._scratch.values()
    assert memory.shape == (30 * 21,)
    assert len({linear.scratch_weight(torch.float32).data_ptr() for linear in linears}) == 1
    for linear in linears:
        torch.testing.assert_close(linear(torch.eye(linear.in_features)).t(), linear.dense_weight())
    del linear, linears, memory
    gc.collect()
    assert not module._scratch


@pytest.mark.parametrize("value", [0.0, 3.7, -0.2, 1e-20])
def test_constants_and_single_signs_survive(value):
    """The released quantiser clamps the zero point of such groups, and loses them."""
    weight = torch.full((2, 300), value)
    torch.testing.assert_close(int8_linear(weight).dense_weight(), weight, rtol=1e-6, atol=0)
    shifted = normal(2, 300).clamp(-3, 3) + (4 if value >= 0 else -4)
    step = 7 / 255
    assert (int8_linear(shifted).dense_weight() - shifted).abs().max() <= step / 2 + 1e-6


def test_the_state_is_codes_scales_and_zeros():
    linear = int8_linear(normal(9, 300))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in linear.state_dict().items()} == {
        "codes": (torch.uint8, (9, 304)),  # rows begin at multiples of 16 bytes
        "scales": (torch.float32, (9, 2)),
        "zeros": (torch.uint8, (9, 2)),
    }
    assert list(linear.parameters()) == []
    other = int8_linear(torch.zeros(9, 300))
    other.load_state_dict(linear.state_dict())
    assert torch.equal(other.dense_weight(), linear.dense_weight())
    assert torch.equal(linear.bfloat16().dense_weight(), other.dense_weight())  # scales stay fp32


@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16])
def test_a_model_starts_from_the_codes_of_the_dense_one(param_dtype):
    model, dense = model_of(True, param_dtype=param_dtype), model_of(False)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear)}
    assert len(linears) == 14
    for name, linear in linears.items():
        weight = dense.get_submodule(name).weight.detach()
        assert torch.equal(linear.codes, int8_linear(weight).codes)
        step = linear.scales.max()
        assert (linear.dense_weight() - weight).abs().max() <= step / 2 * (1 + 1e-5)
    assert {p.dtype for p in model.parameters()} == {param_dtype}
    assert {name.rpartition(".")[2] for name, _ in model.named_parameters()} == {"weight"}
    assert support_checksum(model) == support_checksum(model_of(True)) != support_checksum(model_of(True, seed=1))


def test_other_linears_have_no_dense_weights_to_keep_so():
    shape = ModelConfig(dim=32, n_layers=1, n_heads=2, ffn_dim=53, vocab_size=64)
    dtypes = {"param_dtype": torch.float32, "compute_dtype": torch.float32}
    with pytest.raises(UserError, match=r'linear\.name = "low_rank".*optimizer\.weights = "int8"'):
        build_model(shape, LowRank.Config(rank=4), seed=0, device="cpu", int8=True, **dtypes)
