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
from pretrain.memory_plan.cards import GIB, fits, fragmentation, reserve
from pretrain.memory_plan.memory import plan_memory
from pretrain.memory_plan.transfers import transfers
from pretrain.plan import plan
from pretrain.using.export import export

CPU = torch.device("cpu")
SPARE = GIB
"""Bytes that a recipe leaves besides the reserve."""
MICRO_STEP = {
    "24gb_sltrain": 16_384,
    "24gb_galore": 16_384,
    "24gb_q_galore": 16_384,
    "16gb_q_galore": 8192,
    "16gb_sltrain": 8192,
    "12gb_apollo_mini": 16_384,
}
"""Tokens of a micro-step: the most that leave SPARE."""
TOKENS = 150_000 * 131_072
LR = {"sltrain": 0.003, "galore": 0.005, "q_galore": 0.004, "apollo_mini": 0.01}
"""Of the papers' 7B runs, on 131,072 tokens per update."""

QUICK = ("24gb_sltrain", "12gb_apollo_mini")
"""Recipes that have between them what the others have: one of each kind of linear, optimizer and update."""
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
    assert total + figures["reserve"] + SPARE <= card
    header = re.search(
        r"# Planned peak: ([\d.]+) GiB of tensors, and ([\d.]+) GiB in the host's memory", path.read_text()
    )
    assert header, "the header states the planned peak"
    assert float(header[1]) == pytest.approx(total / GIB, abs=0.15)
    assert float(header[2]) == pytest.approx(figures["host_memory_bytes"] / GIB, abs=0.05)
    assert f"{figures['parameters']['total'] / 1e6:.2f} M parameters" in path.read_text()


@each
def test_the_readme_states_it(path: Path) -> None:
    figures = plan(load_config(path), 1, card_gib(path) * GIB)
    total = figures["memory_bytes"]["total"]
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
        assert (train.micro_batch_size * train.seq_len, train.grad_clip) == (tokens, 0)
        assert f"An update on {tokens:,} tokens" in path.read_text()
        assert "another experiment than the papers'" in path.read_text()
    else:
        assert (tokens, train.grad_clip) == (131_072, 1)


@each
def test_micro_steps_take_what_the_card_allows(path: Path) -> None:
    train = load_config(path).train
    assert train.micro_batch_size * train.seq_len == MICRO_STEP[path.stem.removeprefix("llama_7b_")]
    assert train.offload_activations


@pytest.mark.slow
@each
def test_twice_the_tokens_would_leave_less_than_the_spare(path: Path) -> None:
    config = load_config(path)
    train = config.train
    batches = {"micro_batch_size": 2 * train.micro_batch_size}
    batches["global_batch_size"] = max(train.global_batch_size, batches["micro_batch_size"])
    twice = config.model_copy(update={"train": train.model_copy(update=batches)})
    total = plan_memory(twice, card_bytes=card_gib(path) * GIB).total
    assert total + reserve(total, fragmentation(twice)) + SPARE > card_gib(path) * GIB


@pytest.mark.parametrize(("name", "most"), [("24gb_sltrain", 1.07), ("16gb_sltrain", 1.13)])
def test_composed_weights_cost_little_more_than_dense_ones(name: str, most: float) -> None:
    """They are composed once per pass and micro-step, whatever its tokens."""
    path = recipes()[name]
    figures = plan(load_config(path), 1, card_gib(path) * GIB)
    assert figures["flops"] <= most * figures["flops_dense_equivalent"]
    assert f"{figures['flops'] / figures['flops_dense_equivalent']:.2f} times the FLOPs of" in path.read_text()


@each
def test_activations_in_host_memory_take_no_more_than_8_gib_and_no_time(path: Path) -> None:
    """At 165 TFLOP/s and 40 % of it, an input is there long before half a block has been computed."""
    config, speed = load_config(path), 0.4 * 165e12
    here = config.model_copy(update={"train": config.train.model_copy(update={"offload_activations": False})})
    assert 0 < plan_memory(config).host - plan_memory(here).host <= 8 * GIB
    moved = transfers(config, speed)
    assert moved["covered"]
    assert moved["seconds_per_input"] < moved["seconds_of_part"] / 3


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


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if name in QUICK else pytest.mark.slow) for name, path in recipes().items()],
    ids=list(recipes()),
)
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
