"""Every shipped configuration plans quickly, adds up, and what is proposed to make it fit does fit."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from pretrain.cli import main
from pretrain.config import load_config
from pretrain.config.schema import Config
from pretrain.memory_plan import memory
from pretrain.memory_plan.cards import CARDS, GIB, fits, fitting, fragmentation, parse_memory, reserve
from pretrain.memory_plan.levers import _changed, proposals
from pretrain.memory_plan.memory import at_most, plan_memory
from pretrain.memory_plan.observe import Observation, observe
from pretrain.plan import plan

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations(path: Path) -> None:
    config, started = load_config(str(path), []), time.process_time()  # others may keep the cores busy
    plan = plan_memory(config)
    assert time.process_time() - started < 5
    assert sum(plan.items.values()) == plan.total == max(moment.total for moment in plan.phases.values())


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    path = next(path for path in CONFIGS if path.stem == "llama_60m_dense")
    assert main(["plan", str(path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    memory = figures["memory_bytes"]
    assert memory.pop("total") == sum(memory.values())
    assert set(figures["fits"]) == {f"{size}GiB" for size in CARDS}
    assert (figures["fits"]["8GiB"], figures["fits"]["24GiB"]) == (False, True)


def test_time_at_a_given_utilisation(capsys: pytest.CaptureFixture[str]) -> None:
    path = next(path for path in CONFIGS if path.stem == "llama_60m_dense")
    command = ["plan", str(path), "--json", "--world-size", "2"]
    assert main([*command, "--gpu-tflops", "100", "--mfu", "0.5"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["seconds"] == pytest.approx(figures["flops"] / 1e14)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] is None
    for options, message in (
        (["--mfu", "0.4"], "give that too"),
        (["--gpu-tflops", "0"], "is no peak"),
        (["--gpu-tflops", "100", "--mfu", "40"], "is no part of a peak"),
    ):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "size", "optimizers"),
    [
        ("llama_130m_dense", 8, set()),
        ("llama_7b_dense", 24, {"galore_adamw8bit", "q_galore"}),
        pytest.param("llama_7b_sltrain", 24, {"adamw8bit"}, marks=pytest.mark.slow),
        pytest.param("llama_7b_24gb_sltrain", 16, set(), marks=pytest.mark.slow),
        pytest.param("llama_7b_24gb_q_galore", 16, set(), marks=pytest.mark.slow),
    ],
)
def test_proposals_fit_and_are_valid(
    name: str, size: int, optimizers: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And take few plans of the whole model, which are what takes time; other optimizers come with all they need."""
    path = next(path for path in CONFIGS if path.stem == name)
    config, card = load_config(str(path), []), size * GIB
    assert not fits(config, 1, card)
    depths: list[int] = []

    def counted(changed: Config, *arguments: Any) -> Observation:
        depths.append(changed.model.n_layers)
        return observe(changed, *arguments)

    monkeypatch.setattr(memory, "observe", counted)
    memory._observed.cache_clear()
    changes = proposals(config, 1, card)
    assert changes
    assert {change["optimizer.name"] for change in changes if "optimizer.name" in change} == optimizers
    assert depths.count(config.model.n_layers) <= 15
    assert len(depths) <= 45
    for change in changes:
        changed = _changed(config, change)
        assert changed is not None
        assert fits(changed, change.get("--world-size", 1), card)


@pytest.mark.parametrize(
    ("micro_batch", "proposed"),
    [(8, {"train.global_batch_size": 8}), (32, {"train.global_batch_size": 16, "train.micro_batch_size": 16})],
)
def test_updates_per_layer_are_proposed_with_their_batch(micro_batch: int, proposed: dict[str, int]) -> None:
    path = next(path for path in CONFIGS if path.stem == "llama_7b_24gb_sltrain")
    config = load_config(str(path), [f"--train.micro_batch_size={micro_batch}", "--train.offload_activations=false"])
    change, *others = proposals(config, 1, 16 * GIB)
    alone = {"optimizer.update": "per_layer", "train.grad_clip": 0.0}
    assert change == alone | proposed
    whole = alone | {"train.global_batch_size": micro_batch, "train.offload_activations": True}
    assert others == ([] if micro_batch == 8 else [whole]), "with activations in host memory it need not become smaller"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_shards_shrink_with_the_number_of_processes(stage: int) -> None:
    path = next(path for path in CONFIGS if path.stem == "llama_1b_dense")
    config = load_config(str(path), [f"--parallel.zero_stage={stage}"])
    one, four = plan_memory(config, 1).items, plan_memory(config, 4).items
    for item in ("masters", "moments"):
        assert four[item] == pytest.approx(one[item] / 4, rel=1e-3)


def test_growth_counts_its_largest_stage() -> None:
    path = next(path for path in CONFIGS if path.stem == "llama_1b_gstack")
    config = load_config(str(path), [])
    assert plan_memory(config).n_layers == config.model.n_layers


def test_reserve_is_outside_of_the_total() -> None:
    assert reserve(100 * GIB) == 6 * GIB


def test_memory_sizes() -> None:
    assert parse_memory("24GiB") == parse_memory("24") == 24 * GIB
    assert parse_memory("80GB") == 80 * 10**9
    for text in ("", "0", "x", "-1GiB", "24TiB"):
        with pytest.raises(UserError, match="--gpu-memory"):
            parse_memory(text)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_card_is_judged_as_by_its_own_plan(path: Path) -> None:
    config = load_config(str(path), [])
    totals = {size: plan_memory(config, card_bytes=size * GIB).total for size in CARDS}
    assert all(at_most(config, 1, size * GIB) >= total for size, total in totals.items())
    needed = {size: total + reserve(total, fragmentation(config)) for size, total in totals.items()}
    assert fitting(config, 1) == {size: needed[size] <= size * GIB for size in CARDS}
    assert plan(config, 1)["parameters"]["total"] > 1e6  # and all else that is planned, from what was observed by now
