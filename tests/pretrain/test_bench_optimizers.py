"""The benchmark of the optimizers: its peers do the same work, and its rows add up."""

import json

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from pretrain.bench import optimizers
from pretrain.bench.released import BETA1, BETA2, EPS, RELEASED, GaLore
from pretrain.bench.timing import CpuClock
from pretrain.cli import main
from pretrain.optim.matrix import Matrix, projected_side
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.rules import PRESETS

SHAPES = [(12, 20), (20, 12), (16, 16)]
SETTINGS = {"betas": (BETA1, BETA2), "eps": EPS, "lr": 0.01, "weight_decay": 0.1}


@pytest.mark.parametrize("method", [m for m in RELEASED if m in PRESETS and m != "online_subspace"])
def test_peer_does_what_ours_does(method):
    """From the same bases, which do not change within a few steps."""
    rank = 1 if method == "apollo_mini" else 4
    config = PRESETS[method].Config.model_validate({"name": method, "rank": rank, **SETTINGS})
    random = torch.Generator().manual_seed(0)
    named = [(str(i), nn.Parameter(torch.randn(shape, generator=random))) for i, shape in enumerate([*SHAPES, (30,)])]
    sides = [projected_side(shape, "std", "right") for shape in SHAPES]
    targets = {n: Matrix(n, s, side, rank) for (n, _), s, side in zip(named, SHAPES, sides, strict=False)}
    ours = MatrixOptimizer(named, targets, config, seed=0)
    copies = {name: (p.detach().clone(), torch.empty_like(p)) for name, p in named}
    peer = RELEASED[method]([copies[n] for n in targets], [copies["3"]], rank, config.scale, 0.01, 0.1)
    matched = {id(copies[t.name][0]): t for t in ours.targets}
    peer.state = {i: {"P": t.P.t() if t.matrix.side == "right" else t.P} for i, t in matched.items()}
    ours.refresher.projector.basis = lambda *_: None
    for _ in range(4):
        for name, parameter in named:
            parameter.grad = torch.randn(parameter.shape, generator=random)
            copies[name][1].copy_(parameter.grad)
        ours.step()
        peer.step()
        for name, parameter in named:
            torch.testing.assert_close(parameter.detach(), copies[name][0], rtol=1e-5, atol=1e-6)


def test_peer_takes_the_leading_singular_vectors():
    for rows, cols in SHAPES:
        G = torch.randn(rows, cols)
        peer = GaLore([], [], 3, 0.25, 0.01)
        captured = peer.project(G, peer.find_basis(G)).square().sum()
        torch.testing.assert_close(captured, torch.linalg.svdvals(G)[:3].square().sum())


def test_prints_rows_that_add_up(monkeypatch, capsys):
    """Of a small model; times are a clock's that knows what it is asked to do."""
    small = ModelConfig(dim=32, n_layers=2, n_heads=2, ffn_dim=48, vocab_size=64)
    monkeypatch.setattr(optimizers, "SIZES", {"60m": optimizers.Size(2, 8)})
    monkeypatch.setattr(optimizers, "load_config", lambda path: type("Config", (), {"model": small}))
    monkeypatch.setattr(CpuClock, "slice_seconds", 1e-9)
    assert main(["bench", "optimizers", "--device", "cpu", "--turns", "1", "--dtype", "fp32", "bf16", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    methods = [method for method in RELEASED if method in PRESETS]
    assert len(rows) == len(methods) * 3 * (2 + 3)
    for row in rows:
        assert row.keys() == {
            "name", "shape", "dtype", "device", "ours_ms", "reference", "reference_ms", "ratio",
        }  # fmt: skip
        assert row["shape"] == f"60m, 14 matrices, rank {1 if 'mini' in row['name'] else 8}"
    for method in methods:
        ordinary, mean, slowest = (
            {row["reference"]: row for row in rows if row["name"] == f"{method}, {kind}" and row["dtype"] == "fp32"}
            for kind in ("ordinary step", "mean of 200 steps", "slowest step")
        )
        if PRESETS[method].uses_basis and method != "online_subspace":
            bases = slowest["released, fp32"]["reference_ms"] - ordinary["released, fp32"]["reference_ms"]
            assert mean["released, fp32"]["reference_ms"] == pytest.approx(
                ordinary["released, fp32"]["reference_ms"] + bases / 200
            )
            assert mean["released, fp32"]["ours_ms"] > ordinary["released, fp32"]["ours_ms"]
        assert mean["fused AdamW, fp32"]["reference_ms"] == ordinary["fused AdamW, fp32"]["reference_ms"]


def test_ordinary_steps_refresh_nothing_and_the_slowest_does(monkeypatch):
    small = ModelConfig(dim=32, n_layers=2, n_heads=2, ffn_dim=48, vocab_size=64)
    monkeypatch.setattr(optimizers, "SIZES", {"60m": optimizers.Size(2, 8)})
    monkeypatch.setattr(optimizers, "load_config", lambda path: type("Config", (), {"model": small}))
    model = optimizers._shape("60m")
    named = [(name, nn.Parameter(torch.randn(p.shape))) for name, p in model.named_parameters()]
    gradients = [torch.randn(p.shape) for _, p in named]
    clock = CpuClock(torch.device("cpu"))
    method = optimizers._Method(clock, model, "60m", "galore_adamw", torch.float32, named, gradients)
    found: list[int] = []
    basis = method.ours.refresher.projector.basis
    method.ours.refresher.projector.basis = lambda matrix, *rest: found.append(matrix.n) or basis(matrix, *rest)
    method._our_step(method.ours.updates)
    assert found == []
    method._our_slowest(1, 0.0)
    assert len(found) == 1  # 14 matrices over 20 steps, and then over 200
    assert found == [48]  # one of the largest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--device", "cuda"], "torch finds no GPU"), (["--device", "cpu", "--turns", "0"], "--turns must be at least 1")],
)
def test_refuses_in_a_sentence(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "optimizers", *arguments]) == 2
    assert sentence in capsys.readouterr().err
