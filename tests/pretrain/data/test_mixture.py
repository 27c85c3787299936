"""Mixtures: shares exact, every row of a corpus once per epoch, and nothing but (seed, cursor) decides."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from corpora import flip
from hypothesis import given, settings
from hypothesis import strategies as st
from mixing import WEIGHTS, prepare_two
from tokenised import write_flat

from model.errors import UserError
from pretrain.cli import main
from pretrain.config import load_config
from pretrain.config.write import fixed_keys, to_toml
from pretrain.data.dataset import IGNORE, TokenDataset
from pretrain.data.mixture import BLOCK, MixtureDataset, Turns
from pretrain.plan import plan

SHARES = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return prepare_two(tmp_path_factory.mktemp("two"))


def mixed(two, split="train", packing="concat", seed=5, weights=WEIGHTS, **more) -> MixtureDataset:
    paths = {name: str(path) for name, path in {**two, **more}.items()}
    return MixtureDataset(paths, weights, split, 16, packing, seed)


@settings(deadline=None, max_examples=25)
@given(shares=SHARES, seed=st.integers(0, 2**60), block=st.integers(0, 2**40), offset=st.integers(0, BLOCK - 1))
def test_turns(shares, seed, block, offset):
    """In every block exact shares; `before` counts what `of` gives, anywhere; batches are near the shares as well."""
    turns = Turns(shares, seed)
    wanted = np.array(shares) / sum(shares) * BLOCK
    assert sum(turns.quotas) == BLOCK
    assert (np.abs(np.array(turns.quotas) - wanted) < 1).all()
    whole = turns.of(block * BLOCK, BLOCK)
    assert np.bincount(whole, minlength=len(shares)).tolist() == turns.quotas
    cursor = block * BLOCK + offset
    part = turns.of(cursor, 700)
    counts = np.bincount(part, minlength=len(shares))
    assert counts.tolist() == [b - a for a, b in zip(turns.before(cursor), turns.before(cursor + 700), strict=True)]
    assert (np.abs(counts - np.array(turns.quotas) * 0.07) <= len(shares) + 4).all()
    assert turns.of(cursor, 0).size == 0
    pieces = [turns.of(cursor + at, 100) for at in range(0, 700, 100)]
    assert np.array_equal(np.concatenate(pieces), part)


def test_blocks_begin_at_places_of_their_own():
    turns, again, other = Turns([1, 2], 0), Turns([1, 2], 0), Turns([1, 2], 1)
    assert not np.array_equal(turns.of(0, 9), turns.of(BLOCK, 9)) or not np.array_equal(turns.of(0, 9), other.of(0, 9))
    assert np.array_equal(turns.of(123, 5000), again.of(123, 5000))


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_each_row_of_a_corpus_comes_once_per_epoch(two, packing):
    data = mixed(two, packing=packing)
    n = data.n_samples
    rows = data.batch(0, 6 * n)
    seen = data.seen(0, 6 * n)
    for index, (name, source) in enumerate(data.sources.items()):
        turns = torch.from_numpy(data._turns.of(0, 6 * n)) == index
        own = rows.tokens[turns].tolist()
        assert len(own) == seen[name].samples
        natural = TokenDataset(two[name], "train", 16, packing, seed=99)
        every = sorted(natural.batch(0, natural.n_samples).tokens.tolist())
        epochs = len(own) // source.n_samples
        assert epochs >= 2
        for epoch in range(epochs):
            assert sorted(own[epoch * source.n_samples : (epoch + 1) * source.n_samples]) == every


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_weights_are_shares_of_tokens(two, packing):
    data = mixed(two, packing=packing)
    tokens = {name: seen.tokens for name, seen in data.seen(0, BLOCK).items()}
    share = tokens["prose"] / sum(tokens.values())
    assert share == pytest.approx(0.75, abs=1e-4 if packing == "concat" else 5e-3)
    assert sum(tokens.values()) == data.count(0, BLOCK)[0]
    assert data.tokens_per_row == pytest.approx(sum(tokens.values()) / BLOCK, rel=1e-2)


@pytest.mark.parametrize("packing", ["concat", "document"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_batch_is_its_parts(two, split, packing):
    data, start = mixed(two, split, packing), 2 * BLOCK - 5
    whole = data.batch(start, 12)
    for size in (1, 3, 4):
        parts = [data.batch(start + at, size) for at in range(0, 12, size)]
        assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
        assert torch.equal(whole.targets, torch.cat([part.targets for part in parts]))
        assert sum(data.target_bytes(start + at, size) for at in range(0, 12, size)) == data.target_bytes(start, 12)
    real, targets = data.count(start, 12)
    assert targets == int((whole.targets != IGNORE).sum())
    assert real == 12 * 16 if packing == "concat" else real >= targets


def test_the_order_of_the_table_changes_nothing_and_the_seed_does(two):
    data = mixed(two)
    assert torch.equal(data.batch(77, 20).tokens, mixed(dict(reversed(two.items()))).batch(77, 20).tokens)
    assert data.fingerprint == mixed(dict(reversed(two.items()))).fingerprint
    assert not torch.equal(data.batch(77, 20).tokens, mixed(two, seed=6).batch(77, 20).tokens)


def test_epochs_in_words(two):
    data = mixed(two)
    for part, (name, source) in zip(data.epochs(800).split(" and "), data.sources.items(), strict=True):
        assert part == f"{data.seen(0, 800)[name].samples / source.n_samples:.2f} epochs of {name}"


def test_mixtures_that_cannot_be(two, texts, tmp_path):
    other = tmp_path / "other"
    assert main(["prepare", "--text", str(texts), "--out", str(other), "--vocab-size", "321"]) == 0
    weights = WEIGHTS | {"other": 1.0}
    with pytest.raises(UserError, match=r"need one tokenizer, but other has another than code; prepare oth"):
        mixed(two, weights=weights, other=other)
    ids = write_flat(tmp_path / "ids.bin", [range(300)])
    for size, more in ((320, "bare"), (500, "wide")):
        given = ["--tokens", str(ids), "--vocab-size", str(size), "--out", str(tmp_path / more)]
        assert main(["prepare", *given, "--val-fraction", str(size / 1000)]) == 0
    with pytest.raises(
        UserError, match=r"one tokenizer, but other has no tokenizer and code has one; prepare other ag"
    ):
        mixed(two, weights=weights, other=tmp_path / "bare")
    with pytest.raises(
        UserError, match=r"b has a vocabulary of 500 ids and a one of 320; all corpora of a mixture need"
    ):
        mixed({}, weights={"a": 1.0, "b": 1.0}, a=tmp_path / "bare", b=tmp_path / "wide")
    with pytest.raises(UserError, match=r"data\.mixture: other and prose are the same corpus; leave one out"):
        mixed(two, weights=weights, other=shutil.copytree(two["prose"], tmp_path / "copy"))
    with pytest.raises(UserError, match=r"nowhere: no prepared corpus there"):
        mixed(two, weights=weights, other=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.mixture\.code\.weight 1e-06 is less than one row in 10,000"):
        mixed(two, weights={"prose": 3.0, "code": 1e-6})
    with pytest.raises(UserError, match=r"data\.mixture\.code: corpus too short, .* fewer than the 25000 that an opt"):
        mixed(two).require_rows(100_000)
    paths = {name: str(path) for name, path in two.items()}
    with pytest.raises(UserError, match=r"data\.mixture\.code: corpus too short, split val .* 1000001"):
        MixtureDataset(paths, WEIGHTS, "val", 1_000_000, "concat", 0)


@pytest.mark.fault("F37")
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_changed_byte_of_any_corpus_is_seen_as_it_is_read(two, tmp_path, name):
    copies = {source: shutil.copytree(path, tmp_path / source) for source, path in two.items()}
    flip(copies[name] / "train-00000.bin", 100)
    data = mixed(copies)
    with pytest.raises(UserError, match=rf"{name}/train-00000\.bin: its contents changed"):
        data.batch(0, data.n_samples)


@pytest.mark.parametrize(("processes", "micro"), itertools.product((1, 2, 3), (1, 2)))
def test_processes_share_a_batch_out_among_them(two, processes, micro):
    """As train_step deals micro-batches out: together they hold the global batch, each sample once."""
    data, size = mixed(two), 12
    whole = sorted(data.batch(240, size).tokens.tolist())
    dealt = []
    for rank in range(processes):
        for index in range(rank, size // micro, processes):
            dealt += data.batch(240 + index * micro, micro).tokens.tolist()
    assert sorted(dealt) == whole


TABLE = """
[data.mixture]
prose = { path = "data/prose", weight = 3 }
code = { path = "data/code", weight = 1.0 }
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mixed.toml"
    path.write_text(TABLE)
    return path


def test_configuration_is_read_back(table, tmp_path):
    config = load_config(table, ["--data.mixture.code.path=/elsewhere/c", "--data.mixture.code.weight=2.5"])
    assert config.data.paths == {"data.mixture.prose": "data/prose", "data.mixture.code": "/elsewhere/c"}
    assert config.data.mixture["code"].weight == 2.5
    for comments in (False, True):
        (tmp_path / "again.toml").write_text(to_toml(config, comments))
        assert load_config(tmp_path / "again.toml") == config
    weights = {key: value for key, value in fixed_keys(config).items() if key.startswith("data.mixture")}
    assert weights == {"data.mixture.prose.weight": 3.0, "data.mixture.code.weight": 2.5}
    assert fixed_keys(load_config(table)) == fixed_keys(load_config(table, ["--data.mixture.code.path=x"]))
    assert "data.mixture" not in fixed_keys(load_config(None)), "as in runs of earlier versions"


@pytest.mark.fault("F10")
@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--data.path=data/x", r'data\.path = "data/x" has no effect beside data\.mixture'),
        ("--data.mixture.code.weight=0", r"data\.mixture\.code\.weight: expected a number greater than 0, got 0"),
        ("--data.mixture.code.wieght=1", r"data\.mixture\.code\.wieght: unknown key; did you mean 'weight'"),
        ("--data.mixture.more.path=x", r"data\.mixture\.more\.weight: expected a value \(it is missing\)"),
        ("--data.mixture.code=x", r"data\.mixture\.code: expected --data\.mixture\.NAME\.path=DIR"),
        ("--data.mixture.a/b.path=x", r"data\.mixture: 'a/b' is no name|data\.mixture\.a/b\.weight"),
        ("--data.mixture=x", r"data\.mixture: expected a table, got 'x'; for example mixture = \{ code"),
        (f"--data.mixture.code.path={'x' * 300}", r"data\.mixture\.code\.path: x+… .* longer than a path"),
    ],
)
def test_wrong_tables(table, override, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config(table, [override])


def test_plan_tells_tokens_and_epochs_of_each(table, two):
    config = load_config(table, [f"--data.mixture.code.path={two['code']}"])
    sources = plan(config, 1)["sources"]
    tokens = config.tokens_per_update * config.schedule.total_steps
    assert sources["prose"] == {"share": 0.75, "tokens": round(tokens * 0.75), "epochs": None}
    assert sources["code"]["epochs"] == pytest.approx(
        tokens / 4 / TokenDataset(two["code"], "train", 16, "concat", 0).n_tokens
    )
