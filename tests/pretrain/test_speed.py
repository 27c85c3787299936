"""Tokens per second count tokens that were trained on, whatever the rows hold beside them."""

import itertools
import json
import random
import re
from types import SimpleNamespace

import pytest
from support import logged, train_here, write_tiny

from pretrain.cli import main
from pretrain.data.dataset import TokenDataset
from pretrain.loop import train
from pretrain.loop.metrics import STEPS_KEPT, StepClock


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A corpus of documents far shorter than a row."""
    folder, rng = tmp_path_factory.mktemp("short"), random.Random(0)
    (folder / "text").mkdir()
    for index in range(200):
        text = " ".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 5))) for _ in range(rng.randint(1, 4)))
        (folder / "text" / f"{index:03d}.txt").write_text(text)
    arguments = ["prepare", "--text", str(folder / "text"), "--out", str(folder / "data"), "--vocab-size", "320"]
    assert main([*arguments, "--val-fraction", "0.3"]) == 0
    return folder / "data"


def test_a_clock_knows_its_tokens():
    clock = StepClock()
    clock.add(2.0, 10)
    clock.add(4.0, 30)
    assert clock.last_tokens_per_second == 7.5
    assert clock.tokens_per_second() == pytest.approx(20 / 3)


@pytest.mark.fault("F32")
def test_a_clock_keeps_only_the_last_steps():
    """The first five of a process, which are slow, count for nothing; nor does what is long past."""
    clock = StepClock()
    for seconds in [9.0] * 5 + [1.0] * 4:
        clock.add(seconds, 10)
    assert clock.steady_seconds() == 1.0
    assert clock.tokens_per_second() == 10
    for seconds in [3.0] * STEPS_KEPT:
        clock.add(seconds, 10)
    assert clock.steady_seconds() == 3.0
    assert len(clock._recent) == STEPS_KEPT


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_padding_is_not_speed(short, tmp_path, monkeypatch, capsys, packing):
    """With steps of one second each, tokens per second are the tokens of a step."""
    ticks = itertools.count()
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    config = write_tiny(tmp_path, short)
    assert train_here(config, f"--data.packing={packing}", "--train.max_steps=4") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    seen = [int(text) for text in logged(tmp_path / "run", "train/tokens_seen").values()]
    speeds = [float(text) for text in logged(tmp_path / "run", "perf/tokens_per_s").values()]
    assert speeds == [float(seen[0])] + [float(b - a) for a, b in itertools.pairwise(seen)]
    assert summary["tokens_per_second"] == summary["tokens_seen"] / 4
    out = capsys.readouterr().out
    if packing == "concat":
        assert summary["tokens_seen"] == 4 * 8 * 16
        assert "= 128 tokens per update; x 60 updates = 7,680 tokens" in out
    else:
        assert summary["tokens_seen"] < 0.9 * 4 * 8 * 16
        mean = TokenDataset(short, "train", 16, "document", 0).tokens_per_row
        found = re.search(r"2 rows of up to 16 tokens .* = 8 rows per update, of ([\d.]+) tokens on average", out)
        assert found
        assert float(found[1]) == pytest.approx(8 * mean, abs=0.06)
        assert f"about {round(60 * 8 * mean):,} tokens" in out


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_a_plan_says_that_padding_may_be_among_its_tokens(tiny, capsys, packing):
    assert main(["plan", str(tiny), f"--data.packing={packing}"]) == 0
    assert ("at most: a row holds one document" in capsys.readouterr().out) == (packing == "document")
