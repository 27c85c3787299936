"""A plan for a named card, and for all of them: what is modelled is the arithmetic of the table, and says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.cli import main
from pretrain.config import load_config
from pretrain.machine.gpus import GPUS, by_name
from pretrain.memory_plan.cards import GIB, fits
from pretrain.plan import MFU

CONFIG = "configs/llama_60m_dense.toml"
WEIGHTS_TOO = "--train.eight_bit_weight_gradients=true"
LARGE = [CONFIG, "--train.micro_batch_size=512"]
"""Needs 19.4 GiB with its reserve."""


def planned(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    assert main(["plan", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_named_card_gives_memory_and_peak(capsys: pytest.CaptureFixture[str]) -> None:
    figures = planned(capsys, *LARGE, "--gpu", "RTX 4090", "--world-size", "1")
    assert (figures["gpu"], figures["assumed_mfu"]) == ("RTX 4090", MFU)
    assert figures["seconds"] == pytest.approx(figures["flops"] / (MFU * 165.2e12))
    assert figures["modelled_tokens_per_second"] == pytest.approx(figures["tokens"] / figures["seconds"])
    assert main(["plan", *LARGE, "--gpu", "rtx 4090"]) == 0
    text = capsys.readouterr().out
    assert "GPU               RTX 4090: 165.2 TFLOP/s in bf16, 24 GiB, 1008 GB/s, PCIe 4.0 x16 (NVIDIA Ada" in text
    assert "(modelled, not measured: 40 % of the peak assumed: 66.08 TFLOP/s on each GPU)" in text
    assert "days (modelled)" in text
    assert "fits 24 GiB: " in text


def test_two_gpus_are_twice_as_fast(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (
        planned(capsys, CONFIG, "--gpu", "RTX 4090", "--mfu", "0.5", "--world-size", size) for size in ("1", "2")
    )
    assert two["modelled_tokens_per_second"] == pytest.approx(2 * one["modelled_tokens_per_second"])
    assert (one["assumed_mfu"], one["seconds"]) == (0.5, pytest.approx(one["flops"] / 82.6e12))


def test_explicit_flags_win(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*LARGE, "--gpu", "RTX 4080", "--gpu-memory", "24GiB", "--gpu-tflops", "100"]
    figures = planned(capsys, *options)
    assert figures["seconds"] == pytest.approx(figures["flops"] / (MFU * 100e12))
    assert main(["plan", *options]) == 0
    assert "fits 24 GiB: " in capsys.readouterr().out


def test_without_a_card_nothing_is_modelled(capsys: pytest.CaptureFixture[str]) -> None:
    figures = planned(capsys, CONFIG)
    assert [figures[key] for key in ("gpu", "assumed_mfu", "seconds", "modelled_tokens_per_second")] == [None] * 4
    assert main(["plan", CONFIG]) == 0
    assert "modelled" not in capsys.readouterr().out


def test_executed_flops_beside_dense(capsys: pytest.CaptureFixture[str]) -> None:
    dense, sparse = planned(capsys, CONFIG), planned(capsys, "configs/llama_60m_sltrain.toml")
    assert dense["flops_over_dense"] == 1
    assert sparse["flops_over_dense"] == sparse["flops"] / sparse["flops_dense_equivalent"] > 1
    assert sparse["flops_per_token"] == sparse["flops"] / sparse["tokens"]
    assert main(["plan", "configs/llama_60m_sltrain.toml"]) == 0
    line = f"  per token       {sparse['flops_per_token']:>22.3e}  ({sparse['flops_over_dense']:.3f} times as dense)"
    assert line in capsys.readouterr().out.splitlines()


def test_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    rows = planned(capsys, *LARGE, "--gpu", "all", "--mfu", "0.5")
    assert [row["gpu"] for row in rows] == [gpu.label for gpu in GPUS]
    assert {row["fits"] for row in rows} == {True, False}
    config = load_config(CONFIG, LARGE[1:])
    for row in rows:
        gpu = by_name(row["gpu"])
        assert row["fits"] == fits(config, 1, gpu.memory_bytes) == (row["spare_gib"] >= 0)
        speeds = [row["modelled_tokens_per_second"], row["modelled_days"]]
        assert speeds == [None] * 2 if not row["fits"] else all(speeds)
        assert row["peak_from"] == gpu.source
    figures = planned(capsys, *LARGE, "--gpu", "RTX 5090", "--mfu", "0.5")
    (row,) = (row for row in rows if row["gpu"] == "RTX 5090")
    assert row["modelled_tokens_per_second"] == figures["modelled_tokens_per_second"]
    assert row["modelled_days"] == figures["seconds"] / 86400
    assert row["spare_gib"] == 32 - (figures["memory_bytes"]["total"] + figures["reserve"]) / GIB


def test_every_card_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *LARGE, "--gpu", "all"]) == 0
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first == "modelled, not measured: 40 % of each card's peak assumed, on 1 of them"
    assert len(lines) == len(GPUS)
    by_card = {gpu.label: line for gpu, line in zip(GPUS, lines, strict=True)}
    assert all(line.startswith(label) for label, line in by_card.items())
    assert by_card["RTX 4080"].endswith("GiB missing")
    assert "GiB to spare" in by_card["RTX 4090"]


def test_the_documented_speeds(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of configs/README.md: card, peak, tokens per second and days."""
    text = Path("configs/README.md").read_text().partition("| card | peak")[2]
    rows = [line.strip("| ").split(" | ") for line in text.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) == 10
    figures = planned(capsys, "configs/llama_7b_24gb_galore.toml")
    for card, peak, speed, days in rows:
        gpu = by_name(card)
        per_second = MFU * gpu.tflops * 1e12 / figures["flops_per_token"]
        assert [peak, speed] == [f"{gpu.tflops:g}", f"{per_second:,.0f}"]
        assert days == f"{figures['tokens'] / per_second / 86400:.0f}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--gpu", "RTX 4090 Laptop GPU"],
            "'RTX 4090 Laptop GPU' is not a card that is known here; nearest: RTX 4090;",
        ),
        (["--gpu", "RTX 3080"], "nearest: RTX 3080 10GB, RTX 3080 12GB;"),
        (["--gpu", "RTX 4090", "--mfu", "40"], "--mfu 40 is no part of a peak"),
        (["--gpu", "all", "--mfu", "0"], "--mfu 0 is no part of a peak"),
        (["--gpu", "all", "--gpu-memory", "24GiB"], "leave out --gpu-memory and --gpu-tflops"),
        (["--gpu", "all", "--gpu-tflops", "165"], "leave out --gpu-memory and --gpu-tflops"),
        (["--gpu", "all", "--world-size", "0"], "--world-size 0"),
    ],
)
def test_bad_input_is_one_sentence(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, *options]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert (output.out, len(output.err.splitlines())) == ("", 1)


def test_products_in_eight_bits_go_by_faster(capsys: pytest.CaptureFixture[str]) -> None:
    plain = planned(capsys, CONFIG, "--gpu", "RTX 4090")
    assert plain["flops_eight_bit"] == 0
    tokens, blocks = plain["tokens"], 8
    numbers = blocks * (4 * 512 * 512 + 3 * 512 * 1376)
    sides = blocks * (4 * (512 + 512) + 3 * (512 + 1376))
    micro_steps = plain["micro_steps_per_update"] * plain["steps"]
    for products, rate, options in (("int8", 4, []), ("fp8", 2, []), ("int8", 4, [WEIGHTS_TOO])):
        figures = planned(capsys, CONFIG, "--gpu", "RTX 4090", f"--train.products={products}", *options)
        eight = (6 if options else 4) * tokens * numbers
        moved = (10 if options else 3) * tokens * sides + 5 * micro_steps * numbers
        assert (figures["flops"], figures["flops_eight_bit"]) == (plain["flops"], eight)
        seconds = (plain["flops"] - eight + eight / rate) / (MFU * 165.2e12) + moved / 1008e9
        assert figures["seconds"] == pytest.approx(seconds)
    assert main(["plan", CONFIG, "--gpu", "RTX 4090", "--train.products=int8"]) == 0
    assert "(at 4 times, by its data sheet; quantising at the memory's bandwidth)" in capsys.readouterr().out
    assert main(["plan", CONFIG, "--gpu-tflops", "100", "--train.products=int8"]) == 0
    assert "(at 2 times, assumed; quantising not counted)" in capsys.readouterr().out
    unnamed = planned(capsys, CONFIG, "--gpu-tflops", "100", "--train.products=int8")
    eight = 4 * tokens * numbers
    assert unnamed["seconds"] == pytest.approx((plain["flops"] - eight / 2) / (MFU * 100e12))


def test_a_card_without_fp8(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, "--gpu", "RTX 3090", "--train.products=fp8"]) == 2
    assert capsys.readouterr().err == (
        'sparlow plan: RTX 3090 has no FP8 products; set train.products = "int8", or leave out --gpu\n'
    )
    rows = planned(capsys, CONFIG, "--gpu", "all", "--train.products=fp8")
    none = [row["gpu"] for row in rows if not row["multiplies"]]
    assert none == [gpu.label for gpu in GPUS if gpu.generation == "Ampere"]
    assert all((row["modelled_days"] is None) == (row["gpu"] in none) for row in rows if row["fits"])
    assert main(["plan", CONFIG, "--gpu", "all", "--train.products=fp8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("no FP8 products") for line in lines) == len(none)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("RTX 3090", (4, 0)),
        ("RTX 4090", (4, 2)),
        ("RTX 5090", (4, 2)),
        ("RTX A6000", (2, 0)),
        ("L4", (2, 2)),
        ("A100-SXM4-80GB", (2, 0)),
        ("H100 80GB HBM3", (2, 2)),
        ("B200", (2, 2)),
    ],
)
def test_rates_of_cards(name: str, rates: tuple[int, int]) -> None:
    """RTX 4090: 660.6 TOPS and, with fp32 sums, 330.3 TFLOP/s over 165.2; H100: 1,979 of both over 989."""
    assert by_name(name).rates == {"bf16": 1, "int8": rates[0], "fp8": rates[1]}


@pytest.mark.slow  # eleven plans of 7B
def test_the_documented_speeds_of_products(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("configs/README.md").read_text().partition("| | bf16 | int8 | fp8 |")[2]
    rows = [line.strip("| ").split(" | ") for line in text.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) == 4
    for what, *speeds in rows:
        recipe, card = what.split(" on an ")
        name = f"configs/llama_7b_{recipe.lower().replace(' gib ', 'gb_').replace('-', '_')}.toml"
        for products, speed in zip(("bf16", "int8", "fp8"), speeds, strict=True):
            options = [name, "--gpu", card, f"--train.products={products}"]
            if speed == "none":
                assert main(["plan", *options]) == 2
                continue
            assert f"{planned(capsys, *options)['modelled_tokens_per_second']:,.0f}" == speed
