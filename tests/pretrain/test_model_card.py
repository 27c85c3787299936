"""The model card of an exported folder: a header that the Hub reads, the run's figures, and no path."""

import re
import tomllib

import pytest
import yaml
from support import TINY, logged, train_here, write_tiny

from pretrain.cli import main
from pretrain.config import load_config
from pretrain.config.write import to_toml
from pretrain.using.model_card import _corpus, _without_paths


@pytest.fixture(scope="module")
def card(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("carded")
    changes = ["--train.max_steps=14", "--eval.every=1"]
    assert train_here(write_tiny(folder, corpus), *changes) == 0
    step = folder / "run" / "checkpoints" / "step-00000014"
    assert main(["export", str(step), "--out", str(folder / "my-model"), "--no-check"]) == 0
    return (folder / "my-model" / "README.md").read_text()


def test_the_header_is_what_the_hub_reads(card):
    header = yaml.safe_load(card.split("---\n")[1])
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", "sparlow", "pretrained", "sparse-low-rank"],
    }
    assert "\n# license:\n" in card


def test_the_run_is_told_in_figures(card):
    assert "| steps | 14 |" in card
    assert "| tokens seen | 1,792 |" in card
    assert "| corpus | data |" in card
    assert re.search(r"\| held-out loss \| \d\.\d{4} nats per token, \d\.\d{4} bits per byte \|", card)
    assert "AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)" in card


def test_some_of_the_losses_on_the_way_are_there_with_the_first_and_last(card, tmp_path_factory):
    rows = re.findall(r"^\| (\d+) \| (\d\.\d{4}) \| (\d\.\d{4}) \|$", card, re.M)
    steps = [int(step) for step, *_ in rows]
    assert len(steps) == 12
    assert steps[0] == 1
    assert steps[-1] == 14
    run = next(path for path in tmp_path_factory.getbasetemp().glob("carded*")) / "run"
    losses = logged(run, "val/loss")
    assert all(loss == f"{float(losses[int(step)]):.4f}" for step, loss, _ in rows)


def test_the_configuration_names_no_path(card, tmp_path_factory):
    tables = tomllib.loads(re.search(r"```toml\n(.*?)```", card, re.S)[1])
    assert tables["run"]["dir"] == "run"
    assert tables["data"]["path"] == "data"
    assert str(tmp_path_factory.getbasetemp()) not in card


def test_a_mixture_is_told_by_names_and_weights(tmp_path):
    text = TINY.format(run=tmp_path / "run", data="")
    weights = {"prose": 3.0, "code": 1.0}
    sources = [f'{name} = {{ path = "{tmp_path / name}", weight = {weight} }}' for name, weight in weights.items()]
    (tmp_path / "mixed.toml").write_text(text.replace('path = ""', f"mixture = {{ {', '.join(sources)} }}"))
    config = load_config(tmp_path / "mixed.toml", [])
    assert _corpus(config) == "prose (weight 3), code (weight 1)"
    assert str(tmp_path) not in to_toml(_without_paths(config))
