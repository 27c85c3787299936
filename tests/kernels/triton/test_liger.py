"""Liger's operations against their definitions. Its SwiGLU does not run in the interpreter, its RoPE does in fp32."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

import kernels.liger as liger
from model.build import build_model
from model.config import ModelConfig
from model.linear import Dense

INSTALLED = importlib.util.find_spec("liger_kernel") is not None
needs_liger = pytest.mark.skipif(not INSTALLED, reason="liger-kernel is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def normal(*size, dtype, device, seed):
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)
    return x.requires_grad_()


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def definition_of_rope(x, tables):
    cos, sin = tables.unsqueeze(2)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def test_available_on_a_gpu_alone(device):
    assert liger.available(torch.zeros(1, device=device)) == (device.type == "cuda" and INSTALLED)
    assert not liger.available(torch.zeros(1, device=device, dtype=torch.float64))


@needs_liger
@needs_gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)], ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 53), (1, 3, 1376), (2, 5, 5461), (3, 1), (1, 2, 11008)], ids=str)
def test_swiglu(shape, dtype, tolerance, device):
    gate, up = (normal(*shape, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    grad = normal(*shape, dtype=dtype, device=device, seed=2).detach()
    exact = [tensor.detach().double().requires_grad_() for tensor in (gate, up)]
    expected = F.silu(exact[0]) * exact[1]
    expected_grads = torch.autograd.grad(expected, exact, grad.double())
    y = liger.swiglu(gate * 1, up * 1)
    assert y.dtype == dtype
    assert relative(y, expected) <= tolerance
    grads = torch.autograd.grad(y, (gate, up), grad)
    for found, wanted in zip(grads, expected_grads, strict=True):
        assert found.dtype == dtype
        assert relative(found, wanted) <= tolerance


@needs_liger
@needs_gpu
def test_swiglu_refuses_a_second_backward_pass(device):
    gate, up = (normal(4, 64, dtype=torch.float32, device=device, seed=seed) for seed in (0, 1))
    y = liger.swiglu(gate * 1, up * 1)
    y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# B, T, H, K, E
ROPE_SHAPES = [(2, 7, 4, 4, 8), (1, 5, 6, 2, 16), (3, 1, 1, 1, 2), (2, 9, 5, 1, 12), (1, 4, 3, 3, 48)]


@needs_liger
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_gpu)], ids=str)
@pytest.mark.parametrize("shape", ROPE_SHAPES, ids=str)
def test_rope(shape, dtype, device):
    batch, tokens, heads, kv_heads, width = shape
    q = normal(batch, tokens, heads, width, dtype=dtype, device=device, seed=0)
    k = normal(batch, tokens, kv_heads, width, dtype=dtype, device=device, seed=1)
    angles = torch.rand(tokens + 3, width // 2, generator=torch.Generator().manual_seed(2)) * 100
    tables = torch.stack([angles.cos(), angles.sin()]).to(dtype).to(device)[:, :tokens]
    grads = [normal(*x.shape, dtype=dtype, device=device, seed=3).detach() for x in (q, k)]
    exact = [x.detach().double().requires_grad_() for x in (q, k)]
    expected = [definition_of_rope(x, tables.double()) for x in exact]
    expected_grads = torch.autograd.grad(expected, exact, [g.double() for g in grads])
    turned = liger.rope(q * 1, k * 1, tables)
    tolerance = 1e-6 if dtype == torch.float32 else 2.5e-3  # one rounding
    for found, wanted in zip(turned, expected, strict=True):
        assert found.shape == wanted.shape
        assert found.dtype == dtype
        assert relative(found, wanted) <= tolerance
    for found, wanted in zip(torch.autograd.grad(turned, (q, k), grads), expected_grads, strict=True):
        assert found.dtype == dtype
        assert relative(found, wanted) <= tolerance


@needs_liger
def test_rope_is_differentiable_once(device):
    q, k = (normal(1, 3, 2, 4, dtype=torch.float32, device=device, seed=seed) for seed in (0, 1))
    tables = torch.rand(2, 3, 2, device=device)
    (grad,) = torch.autograd.grad(liger.rope(q * 1, k * 1, tables)[0].square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@needs_liger
@needs_gpu
@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_a_model_trains_as_with_pytorch(checkpoint_every, device, monkeypatch):
    config = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=172, vocab_size=97, max_seq_len=32)
    options = {"seed": 0, "device": device, "param_dtype": torch.float32, "compute_dtype": torch.float32}
    model = build_model(config, Dense.Config(), **options, checkpoint_every=checkpoint_every)
    tokens = torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(0)).to(device)
    found = {}
    for backend in ("auto", "torch"):
        monkeypatch.setenv("SPARLOW_KERNELS", backend)
        loss = model(tokens, tokens)
        found[backend] = [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    for ours, theirs in zip(found["auto"], found["torch"], strict=True):
        assert relative(ours, theirs.double()) <= 2e-5
