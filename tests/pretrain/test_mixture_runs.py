"""Runs on a mixture: what they log, and that pauses, kills, places and processes change nothing."""

import json
import math
import shutil
from collections import Counter

import pytest
from mixing import WEIGHTS, prepare_two, write_mixed
from processes import train_world
from support import logged, tensor_hashes, train_here, write_tiny

from model.errors import UserError
from pretrain.cli import main
from pretrain.loop.origin import Start
from pretrain.machine import fault
from pretrain.report.panels import panels_of

STEPS = 8


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return prepare_two(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def undisturbed(two, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_mixed(folder, two)
    train_here(config, f"--schedule.total_steps={STEPS}", "--eval.every=4", "--checkpoint.every=4")
    return folder


def last_record(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_figures_of_each_corpus(undisturbed, two, capsys):
    run = undisturbed / "run"
    record, summary = last_record(run), json.loads((run / "summary.json").read_text())
    tokens = {name: record[f"data/{name}/tokens"] for name in WEIGHTS}
    assert sum(tokens.values()) == record["train/tokens_seen"] == STEPS * 8 * 16
    assert tokens["prose"] == pytest.approx(0.75 * STEPS * 8 * 16, abs=32)
    losses = {name: record[f"val/{name}/loss"] for name in WEIGHTS}
    assert {"Held-out loss by source", "Tokens by source", "Epochs by source"} <= {p.title for p in panels_of(record)}
    assert record["val/loss"] == pytest.approx(0.75 * losses["prose"] + 0.25 * losses["code"], rel=1e-12)
    for name in WEIGHTS:
        assert record[f"data/{name}/epochs"] == pytest.approx(
            tokens[name] / 16 / json.loads((two[name] / "manifest.json").read_text())["train"]["tokens"] * 16, rel=0.02
        )
        assert summary["sources"][name]["tokens"] == tokens[name]
        assert summary["sources"][name]["val_loss"] == losses[name]
        alone = evaluated(capsys, str(run), "--data", str(two[name]))
        assert alone["loss"] == pytest.approx(losses[name], rel=1e-6)
        assert alone["bits_per_byte"] == pytest.approx(record[f"val/{name}/bits_per_byte"], rel=1e-6)
    together = evaluated(capsys, str(run))
    assert together["loss"] == pytest.approx(record["val/loss"], rel=1e-6)
    assert together["sources"].keys() == WEIGHTS.keys()
    nats = math.log(2) * together["bits_per_byte"] * together["bytes"]
    assert nats / together["tokens"] == pytest.approx(together["loss"], rel=1e-9)


def evaluated(capsys, *arguments):
    capsys.readouterr()
    assert main(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.fault("F1")
def test_a_pause_and_a_move_of_the_corpora_change_nothing(undisturbed, two, tmp_path):
    config = write_mixed(tmp_path, two)
    options = [f"--schedule.total_steps={STEPS}", "--eval.every=4"]
    train_here(config, *options, "--train.max_steps=3")
    moved = [f"--data.mixture.{name}.path={shutil.copytree(two[name], tmp_path / name)}" for name in WEIGHTS]
    train_here(config, *options, *moved)
    one, other = undisturbed / "run", tmp_path / "run"
    assert logged(other) == logged(one)
    assert logged(other, "data/code/tokens") == logged(one, "data/code/tokens")
    assert tensor_hashes(other, STEPS) == tensor_hashes(one, STEPS)


def test_a_changed_mixture_is_refused(undisturbed, two, tmp_path):
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    config = write_mixed(tmp_path, two)
    options = [f"--schedule.total_steps={STEPS}"]
    with pytest.raises(UserError, match=r"data\.mixture\.code\.weight was 1\.0, is 2\.0"):
        train_here(config, *options, "--data.mixture.code.weight=2.0")
    text, other = str(two["code"].parent / "text" / "code"), tmp_path / "other"
    more = ["--tokenizer", str(two["prose"] / "tokenizer.model"), "--val-fraction", "0.3"]
    assert main(["prepare", "--text", text, "--out", str(other), *more]) == 0
    with pytest.raises(UserError, match=r"data\.mixture\.code holds another corpus or tokenizer \(.*\); restore"):
        train_here(config, *options, f"--data.mixture.code.path={tmp_path / 'other'}")
    write_tiny(tmp_path, two["prose"])
    with pytest.raises(UserError, match=r"it was trained on a mixture of code, prose, not on the corpus of data\.path"):
        train_here(tmp_path / "tiny.toml", *options)


@pytest.mark.slow
def test_a_new_run_counts_from_its_own_beginning(undisturbed, two, tmp_path):
    config = write_mixed(tmp_path, two)
    train_here(config, "--schedule.total_steps=2", start=Start(str(undisturbed / "run")))
    assert sum(last_record(tmp_path / "run")[f"data/{name}/tokens"] for name in WEIGHTS) == 2 * 8 * 16


def test_data_left_out_after_a_spike_is_counted_for_no_corpus(two, tmp_path, monkeypatch):
    """Step 4 spikes, and the run goes back to step 2."""
    monkeypatch.setenv("SPARLOW_FAULT", "loss_spike:4")
    monkeypatch.setattr(fault, "_visits", Counter())
    config = write_mixed(tmp_path, two)
    options = ["--guard.spikes=rewind", "--guard.warmup=2", "--train.micro_batch_size=8", "--checkpoint.every=2"]
    train_here(config, "--schedule.total_steps=6", *options)
    record = last_record(tmp_path / "run")
    assert record["guard/rewinds"] == 1
    assert sum(record[f"data/{name}/tokens"] for name in WEIGHTS) == record["train/tokens_seen"] == 6 * 8 * 16


@pytest.mark.fault("F22")
def test_two_processes_equal_one(undisturbed, two, tmp_path):
    config = write_mixed(tmp_path, two)
    options = [f"--schedule.total_steps={STEPS}", "--eval.every=4", f"--run.dir={tmp_path}/two"]
    train_world(2, config, [options])
    one, other = (logged(folder) for folder in (undisturbed / "run", tmp_path / "two"))
    assert one.keys() == other.keys()
    assert max(abs(float(one[step]) - float(other[step])) for step in one) < 1e-5
    for key in ("data/code/tokens", "data/prose/epochs"):
        assert logged(tmp_path / "two", key) == logged(undisturbed / "run", key)
    for key in ("val/code/loss", "val/loss"):
        here, there = (logged(folder, key) for folder in (undisturbed / "run", tmp_path / "two"))
        assert all(float(here[step]) == pytest.approx(float(there[step]), abs=1e-5) for step in here)
