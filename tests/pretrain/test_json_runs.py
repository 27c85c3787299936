"""A run on a corpus of a tokenizer.json with more than 65,536 tokens, or of ids alone, from prepare to its export."""

import json
from pathlib import Path

import pytest
from json_tokenizers import KINDS, training_lines
from support import train_here, write_tiny

from model.errors import UserError
from pretrain.checkpoint.read import open_checkpoint, require_same_tokenizer, tokenizer_of
from pretrain.cli import main
from pretrain.data.dataset import TokenDataset
from pretrain.data.manifest import read_manifest
from pretrain.data.tokenizer import open_tokenizer

UNUSED = 65_600
"""Tokens before those that texts are made of."""
OPTIONS = (
    *("--train.max_steps=2", "--schedule.total_steps=2", "--model.dim=16", "--model.n_heads=2", "--model.n_layers=1"),
    *("--eval.prompts=['def ']", "--eval.sample_tokens=3", "--eval.every=2", "--checkpoint.every=2"),
)


def write_large(folder: Path) -> Path:
    """A byte-level BPE whose tokens begin at UNUSED, so that no id of a text fits 16 bits."""
    rules = json.loads(KINDS["gpt2"]().to_str())
    rules["model"]["vocab"] = {f"unused{i}": i for i in range(UNUSED)} | {
        token: UNUSED + i for token, i in rules["model"]["vocab"].items()
    }
    for token in rules["added_tokens"]:
        token["id"] += UNUSED
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(rules), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A folder with the tokenizer, the corpus `data` and the run `run`."""
    folder = tmp_path_factory.mktemp("large")
    text = "".join(training_lines())
    rows = (json.dumps({"text": text[i : i + 500]}) + "\n" for i in range(0, 20000, 500))
    (folder / "a.jsonl").write_text("".join(rows))
    given, out = str(write_large(folder)), str(folder / "data")
    assert main(["prepare", "--text", str(folder / "a.jsonl"), "--tokenizer", given, "--out", out]) == 0
    size = open_tokenizer(given).vocab_size
    assert size == UNUSED + 500
    config = write_tiny(folder, folder / "data")
    assert train_here(config, f"--run.dir={folder / 'run'}", f"--model.vocab_size={size}", *OPTIONS) == 0
    return folder


def test_a_large_vocabulary_takes_four_bytes(large):
    manifest = read_manifest(large / "data")
    assert manifest.dtype == "uint32"
    data = TokenDataset(large / "data", "train", 16, "concat", 0)
    assert data.batch(0, 4).tokens.min() >= UNUSED
    text = data.tokenizer.decode(data.batch(0, 1).tokens[0].tolist())
    assert text.strip()
    assert text in "".join(training_lines())


def test_its_run_keeps_the_tokenizer_and_uses_it(large, capsys):
    checkpoint = open_checkpoint(large / "run")
    assert checkpoint.manifest.format_version == 5
    assert sorted(checkpoint.tokenizer_files) == ["tokenizer.json", "tokenizer_config.json"]
    assert tokenizer_of(checkpoint).identity == open_tokenizer(large / "data").identity
    assert main(["eval", str(large / "run"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert 0 < figures["bits_per_byte"] < 20
    assert main(["sample", str(large / "run"), "--prompt", "def f(", "--tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["text"].startswith("def f(")


def test_its_export_has_the_given_file(large, tmp_path):
    assert main(["export", str(large / "run"), "--out", str(tmp_path / "hf"), "--no-check"]) == 0
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == (large / "tokenizer.json").read_bytes()
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (UNUSED + 500, None, UNUSED)
    assert not (tmp_path / "hf" / "tokenizer.model").exists()


@pytest.mark.slow
def test_transformers_agrees_with_the_export(large, tmp_path, capsys):
    pytest.importorskip("transformers")
    assert main(["export", str(large / "run"), "--out", str(tmp_path / "hf"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tokenizer_strings"] == 300
    assert report["tokenizer_documents"] >= 1


def test_another_tokenizer_is_refused(large, corpus):
    expect = r"was not made with the tokenizer that run was trained with; prepare it with --tokenizer .*tokenizer\.json"
    checkpoint, data = open_checkpoint(large / "run"), TokenDataset(corpus, "val", 16, "concat", 0)
    with pytest.raises(UserError, match=expect):
        require_same_tokenizer(checkpoint, data, "data", "run")


@pytest.fixture(scope="module")
def ids_alone(corpus, tmp_path_factory) -> Path:
    """The tiny corpus, as if its ids had come without their tokenizer."""
    folder = tmp_path_factory.mktemp("ids")
    fields = json.loads((corpus / "manifest.json").read_text())
    for path in corpus.glob("*.bin"):
        (folder / path.name).write_bytes(path.read_bytes())
    size = fields["tokenizer"]["vocab_size"]
    fields |= {"format_version": 2, "tokenizer": None, "vocab_size": size}
    for split in ("train", "val"):
        fields[split] |= {"bytes": None, "text_bytes": None}
    (folder / "manifest.json").write_text(json.dumps(fields))
    return folder


def test_a_corpus_of_ids_alone_trains_without_bits_per_byte(ids_alone, tmp_path, capsys):
    config, run = write_tiny(tmp_path, ids_alone), tmp_path / "run"
    assert train_here(config, f"--run.dir={run}", *OPTIONS) == 0
    said = capsys.readouterr()
    assert "has no tokenizer, so no samples are made" in said.out + said.err
    assert json.loads((run / "summary.json").read_text())["bits_per_byte"] is None
    assert tokenizer_of(open_checkpoint(run)) is None
    assert main(["eval", str(run), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["bits_per_byte"] is None
    assert "has no tokenizer: bits per byte are not known" in said.err
    assert main(["sample", str(run)]) == 2
    assert "no tokenizer there" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "hf"), "--no-check"]) == 0
    assert not list((tmp_path / "hf").glob("tokenizer*"))
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "AutoTokenizer" not in card
    assert "model.generate(torch.tensor(" in card
    assert main(["prepare", "--verify", str(ids_alone)]) == 0
