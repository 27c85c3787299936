"""The FLOPs that a run logs are those of the way that its linears compute, by the counter of PyTorch and by hand."""

import json

import pytest
import torch
from support import logged, train_here
from torch.utils.flop_counter import FlopCounterMode

from kernels.sparse_low_rank_linear import Choice
from model.linear import SparseLowRank
from pretrain.cli import main
from pretrain.config import load_config
from pretrain.engine.kernel_choices import recorded
from pretrain.loop import train
from pretrain.machine.gpus import of_device

MICRO_STEPS, TOKENS = 3, 20
BUILD = 2 * 8 * 2 * (4 * 32 * 32 + 3 * 32 * 53)
"""Of every W of the tiny model, once."""


@pytest.mark.parametrize(
    "choice",
    [Choice(), Choice(keep="layer"), Choice(keep="step"), Choice(keep="step", accumulate=True)],
    ids=lambda choice: f"{choice.keep}-{choice.accumulate}",
)
def test_the_count_is_what_pytorch_counts(choice):
    config = SparseLowRank.Config(rank=4, density=0.1)
    linear = SparseLowRank(config, 32, 48, "linear", 0.02)
    linear.reset_parameters(seed=0)
    linear.support.choice = choice
    # PyTorch's counter knows addmm, and not the form that works in place.
    in_place = {torch.ops.aten.addmm_: lambda out, left, right, **_: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        for step in range(MICRO_STEPS):
            linear.support.cache.last_micro_step = step == MICRO_STEPS - 1
            linear(torch.randn(TOKENS, 32, requires_grad=True)).sum().backward()
    expected = SparseLowRank.training_flops(config, 32, 48, TOKENS, choice, MICRO_STEPS)
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize(
    ("options", "costs"),
    [
        (["--kernels.keep_weight=none", "--kernels.sum_gradients=factors"], 4 * 4),
        (["--kernels.keep_weight=layer", "--kernels.sum_gradients=factors"], 4 * 3),
        (["--kernels.keep_weight=step", "--kernels.sum_gradients=factors"], 1 + 4 * 2),
        (["--kernels.keep_weight=step", "--kernels.sum_gradients=dense"], 3),
    ],
)
def test_a_run_counts_what_it_chose(tiny, tmp_path, options, costs):
    """Four micro-steps: beside what a dense model does, so many times every W, over a resume too."""
    options = [*options, "--metrics.peak_tflops=1e-3"]
    assert train_here(tiny, *options, "--train.max_steps=2") == 0
    assert train_here(tiny, *options, "--train.max_steps=3") == 0
    executed, dense = (
        [float(text) for text in logged(tmp_path / "run", key).values()]
        for key in ("train/flops", "train/flops_dense_equivalent")
    )
    assert [one - other for one, other in zip(executed, dense, strict=True)] == [s * costs * BUILD for s in (1, 2, 3)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["flops"] == executed[-1]
    assert summary["stages"][0]["flops"] == executed[-1]


def test_mfu_counts_what_the_run_chose(tiny, tmp_path):
    """At a peak of 1e9 FLOP/s MFU times the steady seconds, here one step's, is the FLOPs of that step."""
    assert train_here(tiny, "--train.max_steps=1", "--metrics.peak_tflops=1e-3", "--kernels.keep_weight=layer") == 0
    (record,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert record["perf/mfu"] * 1e9 * record["perf/step_ms_p50"] / 1000 == pytest.approx(record["train/flops"])


def test_mfu_of_a_card_by_its_name(tiny, tmp_path, monkeypatch, capsys):
    """The peak is that of the table when the configuration has none, and the line of the step shows it too."""
    peak = of_device("NVIDIA GeForce RTX 4060 Ti", 16 * 1024**3).tflops * 1e12
    monkeypatch.setattr(train, "peak_flops", lambda device: peak)
    assert train_here(tiny, "--train.max_steps=1") == 0
    (record,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert record["perf/mfu"] * peak * record["perf/step_ms_p50"] / 1000 == pytest.approx(record["train/flops"])
    assert f"  MFU {record['perf/mfu']:.1%}" in capsys.readouterr().out


def test_a_plan_counts_as_the_run_would_choose_and_says_so(capsys):
    config = "configs/llama_60m_sltrain.toml"
    found = {}
    for name, options in {"unknown": [], "24": ["--gpu-memory", "24GiB"]}.items():
        assert main(["plan", config, *options, "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
        assert main(["plan", config, *options]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "counted with" in line)
        assert ("built twice" in line, "unknown memory" in line) == (name == "unknown",) * 2
    known, twice = found["24"], found["unknown"]
    assert recorded(known["kernels"][0])((512, 512, 128)) == Choice(keep="step", accumulate=True)
    builds = 8 * 2 * 128 * (4 * 512 * 512 + 3 * 512 * 1376)  # 8 layers, rank 128
    assert load_config(config, []).model.n_layers == 8
    # Two micro-steps: four times each and twice for each factor, against once and once for each factor.
    assert twice["flops"] - known["flops"] == (2 * 4 - 3) * builds * known["steps"]
