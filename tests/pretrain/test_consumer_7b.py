"""The 7B recipes for consumer cards: each fits the card in its name, and in miniature trains, resumes and exports."""

import math
import re
import time
from pathlib import Path

import pytest
import torch
from support import ROOT, train_here

from pretrain.bench.gpu_7b import card_gib, recipes
from pretrain.checkpoint.read import load_model, open_checkpoint
from pretrain.config import load_config
from pretrain.loop.build import build
from pretrain.memory_plan.cards import GIB, fits
from pretrain.plan import plan
from pretrain.using.export import export

CPU = torch.device("cpu")
SPARE = 1.5e9
"""Bytes that a recipe which accumulates leaves besides the reserve."""
FEWER = {"24gb_sltrain": 0.6e9}
"""Less of it, where a micro-step takes more tokens instead."""
TOKENS = 150_000 * 131_072
LR = {"sltrain": 0.003, "galore": 0.005, "q_galore": 0.004, "apollo_mini": 0.01}
"""Of the papers' 7B runs, on 131,072 tokens per update."""

each = pytest.mark.parametrize("path", recipes().values(), ids=list(recipes()))


def test_every_card_has_its_default():
    assert {"24gb_sltrain", "16gb_q_galore", "12gb_apollo_mini"} <= set(recipes())


@each
def test_fits_its_card(path: Path) -> None:
    config, card = load_config(path), card_gib(path) * GIB
    started = time.process_time()  # others may keep the cores busy
    figures = plan(config, 1, card)
    assert time.process_time() - started < 5
    assert figures["fits"][f"{card_gib(path)}GiB"]
    assert fits(config, 1, card)
    total = figures["memory_bytes"]["total"]
    if figures["micro_steps_per_update"] > 1:
        assert total + figures["reserve"] + FEWER.get(path.stem.removeprefix("llama_7b_"), SPARE) <= card
    header = re.search(r"# Planned peak: ([\d.]+) GiB", path.read_text())
    assert header, "the header states the planned peak"
    assert float(header[1]) == pytest.approx(total / GIB, abs=0.15)
    assert f"{figures['parameters']['total'] / 1e6:.2f} M parameters" in path.read_text()
    name = path.stem.split("gb_")[1]
    rows = [
        line
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith(f"| {card_gib(path)} | `{name}`")
    ]
    assert len(rows) == 1, "the README has a row for it"
    peak, besides, tokens = (cell.replace(",", "").strip() for cell in rows[0].split("|")[3:6])
    assert float(peak) == pytest.approx(total / GIB, abs=0.15)
    assert float(besides) == pytest.approx(figures["reserve"] / GIB, abs=0.15)
    assert int(tokens) == figures["tokens_per_update"]
    assert f"`{path.name}`" in (ROOT / "configs" / "README.md").read_text()


@each
def test_the_batch_and_what_follows_from_it(path: Path) -> None:
    config = load_config(path)
    train, steps = config.train, config.schedule.total_steps
    tokens = train.global_batch_size * train.seq_len
    assert tokens * steps == TOKENS
    assert train.checkpoint_every_layers == 1
    assert train.expandable_segments
    assert config.optimizer.lr == pytest.approx(LR[path.stem.split("gb_")[1]] * math.sqrt(tokens / 131_072))
    if config.optimizer.update == "per_layer":
        assert (tokens, train.grad_clip) == (2048, 0)
        assert "another experiment than the papers'" in path.read_text()
    else:
        assert (tokens, train.grad_clip) == (131_072, 1)


def test_composed_weights_are_shared_by_8192_tokens() -> None:
    """The weights are composed once per pass and micro-step, whatever its tokens; 2,048 would pay for it four times."""
    train = load_config(recipes()["24gb_sltrain"]).train
    assert train.micro_batch_size * train.seq_len == 8192
    assert train.global_batch_size * train.seq_len == 131_072


def miniature(path: Path, corpus: Path, run: Path) -> list[str]:
    """Overrides: dimensions, micro-batches and a schedule for a few steps; the code that runs is the recipe's."""
    config = load_config(path)
    small = [f"--run.dir={run}", f"--data.path={corpus}", "--metrics.tensorboard=false", "--metrics.every=1"]
    small += ["--model.dim=64", "--model.n_layers=2", "--model.n_heads=4", "--model.ffn_dim=176"]
    small += ["--model.vocab_size=320", "--train.seq_len=16", "--train.micro_batch_size=2", "--eval.tokens=64"]
    small += ["--schedule.total_steps=4", "--schedule.warmup_fraction=0.0"]
    micro_steps = min(3, config.train.global_batch_size // config.train.micro_batch_size)
    small.append(f"--train.global_batch_size={2 * micro_steps}")
    if config.linear.name != "dense":
        small += ["--linear.rank=8", "--linear.density=0.1"]
    if getattr(config.optimizer, "rank", 1) > 1:
        small.append("--optimizer.rank=8")
    return small


@each
def test_trains_resumes_and_exports_in_miniature(path: Path, corpus, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    small = miniature(path, corpus, run)
    config = load_config(path, small)
    assert train_here(path, *small, "--train.max_steps=1") == 0
    first = capsys.readouterr().out
    assert train_here(path, *small, "--train.max_steps=2") == 0
    assert "at step 1 (" in capsys.readouterr().out
    per_layer = config.optimizer.update == "per_layer"
    assert (f"WARNING: updates on {config.train.global_batch_size * 16} tokens" in first) == per_layer

    before, after = build(config, CPU).state_dict(), load_model(open_checkpoint(str(run)), CPU).state_dict()
    trained = [name for name in before if re.search(r"(weight|codes|\.A|\.B|values)$", name)]
    assert {name for name, _ in build(config, CPU).named_parameters()} <= set(trained)
    still = [name for name in trained if torch.equal(before[name].to(after[name].dtype), after[name])]
    assert still == []

    report = export(str(run), str(tmp_path / "hf"), dtype="bf16", overwrite=False)
    assert report["parameters"] == plan(config, 1)["parameters"]["dense_equivalent"]
    assert (tmp_path / "hf" / "config.json").exists()
