import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import kernels.liger as liger
from model.build import build_model
from model.config import ModelConfig
from model.linear import Dense
from model.rope import apply_rope

CONFIG = ModelConfig(dim=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=37, vocab_size=50, max_seq_len=16)
ON_A_GPU = SimpleNamespace(is_cuda=True, is_meta=False, dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.delenv("SPARLOW_KERNELS", raising=False)
    cached = liger._installed
    cached.cache_clear()
    yield
    cached.cache_clear()


def gradients(checkpoint_every=0):
    options = {"seed": 0, "device": "cpu", "param_dtype": torch.float32, "compute_dtype": torch.float32}
    model = build_model(CONFIG, Dense.Config(), **options, checkpoint_every=checkpoint_every)
    tokens = torch.randint(50, (2, 11), generator=torch.Generator().manual_seed(0))
    loss = model(tokens, tokens)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def test_takes_what_its_kernels_can(monkeypatch):
    monkeypatch.setattr(liger, "_installed", lambda: True)
    assert liger.available(ON_A_GPU)
    assert not liger.available(torch.zeros(1))
    assert not liger.available(SimpleNamespace(is_cuda=True, dtype=torch.float64))
    monkeypatch.setenv("SPARLOW_KERNELS", "torch")
    assert not liger.available(ON_A_GPU)


@pytest.mark.parametrize("missing", ["liger_kernel", "triton"])
def test_without_the_package_pytorch_does_the_work(missing, monkeypatch):
    expected = gradients()
    monkeypatch.setitem(sys.modules, missing, None)  # as if it could not be imported
    assert not liger.available(ON_A_GPU)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_the_model_calls_it_where_it_is_available(checkpoint_every, monkeypatch):
    expected = gradients(checkpoint_every)
    calls = []

    def swiglu(gate, up):
        calls.append("swiglu")
        return F.silu(gate) * up

    def rope(q, k, tables):
        calls.append("rope")
        assert q.shape == (2, 11, 4, 8)
        assert k.shape == (2, 11, 2, 8)
        assert tables.shape == (2, 11, 4)
        return apply_rope(q, tables), apply_rope(k, tables)

    monkeypatch.setattr(liger, "available", lambda tensor: True)
    monkeypatch.setattr(liger, "swiglu", swiglu)
    monkeypatch.setattr(liger, "rope", rope)
    assert all(torch.equal(a, b) for a, b in zip(gradients(checkpoint_every), expected, strict=True))
    passes = 2 if checkpoint_every else 1
    assert calls.count("swiglu") == calls.count("rope") == CONFIG.n_layers * passes


@pytest.fixture
def fake(monkeypatch):
    """Stands in for Liger's SwiGLU, which no CPU runs: like it, the backward function writes over its inputs."""

    def swiglu_forward(a, b):
        return a, b, F.silu(a) * b

    def swiglu_backward(a, b, grad):
        sigmoid = a.sigmoid()
        grad_a, grad_b = grad * b * sigmoid * (1 + a * (1 - sigmoid)), grad * a * sigmoid
        a.data.copy_(grad_a)  # unnoticed by autograd, as a Triton kernel is
        b.data.copy_(grad_b)
        return a, b

    module = SimpleNamespace(swiglu_forward=swiglu_forward, swiglu_backward=swiglu_backward)
    for name in ("liger_kernel", "liger_kernel.ops", "liger_kernel.ops.swiglu"):
        monkeypatch.setitem(sys.modules, name, module)


def test_swiglu_returns_its_gradients_and_refuses_a_second_backward_pass(fake):
    gate, up = (torch.randn(3, 5, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in (0, 1))
    y = liger.swiglu(gate * 1, up * 1)
    expected = torch.autograd.grad((F.silu(gate) * up).square().sum(), (gate, up))
    found = torch.autograd.grad(y.square().sum(), (gate, up), retain_graph=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.square().sum(), (gate, up))


def test_swiglu_works_in_a_checkpointed_model(fake, monkeypatch):
    expected = gradients(1)
    monkeypatch.setattr(liger, "available", lambda tensor: True)
    monkeypatch.setattr(liger, "rope", lambda q, k, tables: (apply_rope(q, tables), apply_rope(k, tables)))
    for a, b in zip(gradients(1), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.fixture
def given_tables(monkeypatch):
    """What a stand-in for Liger's RoPE receives."""
    given = []

    def rope_forward(q, k, cos, sin):
        given.extend((cos, sin))
        return q, k, cos, sin

    for name in ("liger_kernel", "liger_kernel.ops", "liger_kernel.ops.rope"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(rope_forward=rope_forward))
    return given


def turn(tables):
    liger.rope(torch.zeros(2, 11, 4, 8), torch.zeros(2, 11, 2, 8), tables)


def test_rope_hands_over_one_table_for_the_whole_batch(given_tables):
    """Liger 0.8.0 reads a table without a batch side as one table per sequence, and past its end."""
    turn(torch.zeros(2, 11, 4))
    assert [table.shape for table in given_tables] == [(1, 11, 8)] * 2


def test_rope_makes_wide_tables_once_and_drops_them_with_the_tables(given_tables):
    tables = torch.rand(2, 11, 4, dtype=torch.bfloat16)
    with torch.inference_mode():
        turn(tables)
    for _ in range(2):
        turn(tables)
    cos, sin = given_tables[:2]
    assert torch.equal(torch.stack([cos, sin]), tables.float().repeat(1, 1, 2).unsqueeze(1))
    assert not cos.is_inference()  # a backward pass may use them later
    assert {table.data_ptr() for table in given_tables} == {cos.data_ptr(), sin.data_ptr()}
    turn(tables.clone())
    assert given_tables[-1].data_ptr() != sin.data_ptr()
    before = len(liger._wide_tables)
    del tables
    assert len(liger._wide_tables) == before - 1


def test_a_cpu_run_does_not_import_it():
    code = (
        "import sys, torch\n"
        "from model.build import build_model\n"
        "from model.config import ModelConfig\n"
        "from model.linear import Dense\n"
        "config = ModelConfig(dim=8, n_layers=1, n_heads=2, ffn_dim=9, vocab_size=9, max_seq_len=4)\n"
        "options = dict(param_dtype=torch.float32, compute_dtype=torch.float32)\n"
        "model = build_model(config, Dense.Config(), seed=0, device='cpu', **options)\n"
        "model(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)).backward()\n"
        "assert not {'liger_kernel', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
