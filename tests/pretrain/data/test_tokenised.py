"""`prepare --tokens`: ids of others arrive whole, in their documents; what is no such file is refused in a sentence."""

import json
import math
import random
import struct

import numpy as np
import pytest
from support import train_here, write_tiny
from tokenised import write_flat, write_llm_c, write_megatron

from model.errors import UserError
from model.hf.staging import PARTIAL
from pretrain.cli import main
from pretrain.data.dataset import TokenDataset
from pretrain.data.manifest import load_manifest
from pretrain.data.shards import document_starts
from pretrain.data.tokenised import copy, flat, piece
from pretrain.data.tokenised.copy import CopyOptions, copy_tokens
from pretrain.data.tokenised.opening import Reading
from pretrain.data.tokenizer import open_tokenizer
from pretrain.data.verify import verify

VOCABULARY, END = 500, 499


def documents(count=40, end=True, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(END) for _ in range(rng.randint(1, 60))] + [END] * end for _ in range(count)]


def copied(path, out, *, say=print, **options):
    reading = {key: options.pop(key) for key in list(options) if key in Reading.__dataclass_fields__}
    chosen = {"vocab_size": VOCABULARY, "shard_tokens": 300} | options
    return copy_tokens(CopyOptions(path=path, out=out, reading=Reading(**reading), **chosen), say=say)


def read(out, split):
    """The documents of a split, by numpy alone."""
    manifest = load_manifest(out)
    files = [np.fromfile(out / entry.name, manifest.token_dtype) for entry in manifest.split(split).files]
    starts = document_starts(out, manifest, split)
    return [part.tolist() for part in np.split(np.concatenate(files), starts[1:-1])]


def every(count, fraction):
    """Whether each document is held out: as soon as more than `fraction` of those before it would be trained on."""
    return [math.ceil((k + 1) * fraction) > math.ceil(k * fraction) for k in range(count)]


def test_a_flat_pair_is_train_and_val(tmp_path, monkeypatch):
    """Cut where documents end, though pieces of the file are cut anywhere."""
    monkeypatch.setattr(flat, "PIECE_TOKENS", 64)
    (tmp_path / "there").mkdir()
    train, val = documents(50), documents(7, seed=1)
    write_flat(tmp_path / "there" / "train.bin", train)
    write_flat(tmp_path / "there" / "val.bin", val)
    write_flat(tmp_path / "there" / "test.bin", documents(9, seed=2))
    manifest = copied(tmp_path / "there", tmp_path / "out", document_end=END)
    assert (read(tmp_path / "out", "train"), read(tmp_path / "out", "val")) == (train, val)
    assert len(manifest.train.files) == -(-sum(map(len, train)) // 300)
    assert (manifest.tokenizer, manifest.ids, manifest.train.bytes) == (None, VOCABULARY, None)
    assert "as it was written" in verify(tmp_path / "out")
    said = []
    copied(tmp_path / "there", tmp_path / "out", document_end=END, say=said.append)
    assert said[0].endswith("there: test.bin is left out")
    assert "already prepared" in said[1]


def test_names_say_a_split_only_where_some_are_held_out(tmp_path):
    """Else of each file every 1 / val_fraction-th document is."""
    for folder, names in (("train", ("train_1", "train_2")), ("both", ("train_1", "val")), ("rest", ("a", "val"))):
        (tmp_path / folder).mkdir()
        for seed, name in enumerate(names):
            write_flat(tmp_path / folder / f"{name}.bin", documents(20, seed=seed))
        manifest = copied(tmp_path / folder, tmp_path / f"{folder}-out", document_end=END, val_fraction=0.1)
        assert (manifest.train.documents, manifest.val.documents) == ((36, 4) if folder == "train" else (20, 20))
    one = copied(tmp_path / "both" / "train_1.bin", tmp_path / "one", document_end=END, val_fraction=0.1)
    assert (one.train.documents, one.val.documents) == (18, 2)


@pytest.mark.parametrize(("dtype", "name"), [("<u2", None), ("<u4", "uint32"), ("<i4", "int32"), ("<i8", "int64")])
def test_a_flat_file_alone_gives_its_end_to_be_held_out(tmp_path, dtype, name, monkeypatch):
    monkeypatch.setattr(flat, "PIECE_TOKENS", 64)
    ids = [i for document in documents() for i in document]
    path = write_flat(tmp_path / "val.bin", [ids], dtype)
    manifest = copied(path, tmp_path / "out", dtype=name, val_fraction=0.1)
    assert [i for document in read(tmp_path / "out", "train") for i in document] == ids[: -round(len(ids) * 0.1)]
    assert [i for document in read(tmp_path / "out", "val") for i in document] == ids[-round(len(ids) * 0.1) :]
    assert manifest.source["documents"] == "unknown"
    TokenDataset(tmp_path / "out", "train", 16, "concat", 0).batch(0, 4)
    with pytest.raises(UserError, match=r'data\.packing: "document" needs to know .* --document-end ID'):
        TokenDataset(tmp_path / "out", "train", 16, "document", 0)


def test_llm_c(tmp_path, monkeypatch):
    """Each document begins with the mark; shards are named by what they are for."""
    monkeypatch.setattr(flat, "PIECE_TOKENS", 64)
    (tmp_path / "there").mkdir()
    begun = [[END, *document] for document in documents(30, end=False)]
    write_llm_c(tmp_path / "there" / "fineweb_train_000002.bin", begun[20:])
    write_llm_c(tmp_path / "there" / "fineweb_train_000001.bin", begun[10:20])
    write_llm_c(tmp_path / "there" / "fineweb_val_000000.bin", begun[:10])
    copied(tmp_path / "there", tmp_path / "out", document_begin=END)
    assert (read(tmp_path / "out", "val"), read(tmp_path / "out", "train")) == (begun[:10], begun[10:])
    large = [[70_000, 5, 90_000], [70_000, 99_999]]
    path = write_llm_c(tmp_path / "llama.bin", large, magic=20240801, version=7)
    manifest = copied(path, tmp_path / "wide", document_begin=70_000, vocab_size=100_000, val_fraction=0.5)
    assert (read(tmp_path / "wide", "val"), read(tmp_path / "wide", "train")) == (large[:1], large[1:])
    assert manifest.dtype == "uint32"


@pytest.mark.parametrize("code", [3, 4, 5, 8])
@pytest.mark.parametrize("named", ["", ".idx", ".bin"])
def test_megatron(tmp_path, code, named, monkeypatch):
    """Documents of one sequence and of several, and one of none."""
    monkeypatch.setattr("pretrain.data.tokenised.megatron.PIECE_TOKENS", 64)
    parts = [[document[:3], document[3:]] if len(document) > 4 else [document] for document in documents()]
    prefix = write_megatron(tmp_path / "my.text_document", [*parts[:5], [], *parts[5:]], code, modes=code == 4)
    manifest = copied(prefix.with_name(prefix.name + named), tmp_path / "out", val_fraction=0.25)
    held_out = every(40, 0.25)
    assert read(tmp_path / "out", "val") == [d for d, held in zip(documents(), held_out, strict=True) if held]
    assert read(tmp_path / "out", "train") == [d for d, held in zip(documents(), held_out, strict=True) if not held]
    assert (manifest.val.documents, manifest.source["form"]) == (10, "Megatron .bin/.idx")


def test_megatron_sequences_that_lie_apart(tmp_path):
    """The index says where, in any order."""
    prefix = write_megatron(tmp_path / "x", [[[1, 2]], [[3]], [[4, 5, 6]]])
    index = bytearray((tmp_path / "x.idx").read_bytes())
    struct.pack_into("<3q", index, 34 + 12, 6, 4, 0)
    struct.pack_into("<3i", index, 34, 3, 1, 2)
    (tmp_path / "x.idx").write_bytes(index)
    copied(prefix, tmp_path / "out", val_fraction=0.3)
    assert read(tmp_path / "out", "val") + read(tmp_path / "out", "train") == [[4, 5, 6], [3], [1, 2]]


@pytest.mark.parametrize("kind", ["int32", "int64", "large", "fixed"])
def test_a_folder_of_datasets(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    length = 8 if kind == "fixed" else -1
    rows = documents() if kind != "fixed" else [document[:8] for document in documents(200) if len(document) > 8]
    feature = datasets.LargeList if kind == "large" else datasets.Sequence
    value = datasets.Value("int32" if kind == "int32" else "int64")
    features = datasets.Features(
        {"input_ids": feature(value) if kind == "large" else feature(value, length=length), "n": datasets.Value("int8")}
    )
    made = datasets.Dataset.from_dict({"input_ids": rows, "n": [0] * len(rows)}, features=features)
    made.save_to_disk(str(tmp_path / "one"))
    copied(tmp_path / "one", tmp_path / "out", val_fraction=0.1)
    held_out = every(len(rows), 0.1)
    assert read(tmp_path / "out", "val") == [row for row, held in zip(rows, held_out, strict=True) if held]
    assert read(tmp_path / "out", "train") == [row for row, held in zip(rows, held_out, strict=True) if not held]
    chosen = made.select([5, 3, 9]) if kind == "int32" else made
    parts = datasets.DatasetDict({"train": made, "validation": chosen, "test": made})
    parts.save_to_disk(str(tmp_path / "three"))
    said = []
    copied(tmp_path / "three", tmp_path / "split", say=said.append)
    assert (read(tmp_path / "split", "train"), read(tmp_path / "split", "val")) == (rows, [*chosen["input_ids"]])
    assert said == [f"{tmp_path / 'three'}: split test is left out"]


def test_bytes_of_text_are_those_of_the_documents(prepared, salad, tmp_path):
    """With the tokenizer that made them, ids that went out as Megatron's come back with the bytes they had."""
    tokenizer = open_tokenizer(prepared / "tokenizer.model")
    texts = [f"{text[:200]}ünï ✓ 漢" for text in salad]
    made = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    prefix = write_megatron(tmp_path / "x", [[ids] for ids in made])
    said = []
    options = {"tokenizer": prepared / "tokenizer.model", "vocab_size": None}
    manifest = copied(prefix, tmp_path / "out", val_fraction=0.25, say=said.append, **options)
    sizes = [np.fromfile(tmp_path / "out" / f"{split}.bytes.bin", "<u8").tolist() for split in ("train", "val")]
    held_out, lengths = every(len(texts), 0.25), [len(text.encode()) for text in texts]
    assert sizes[1] == [length for length, held in zip(lengths, held_out, strict=True) if held]
    assert sizes[0] == [length for length, held in zip(lengths, held_out, strict=True) if not held]
    assert (manifest.train.bytes, manifest.val.bytes, said) == (sum(sizes[0]), sum(sizes[1]), [])
    data = TokenDataset(tmp_path / "out", "val", 5000, "document", 0)
    assert (data.target_bytes(0, data.n_samples), data.bytes_note) == (manifest.val.bytes, None)


def test_documents_of_markers_alone_have_no_bytes(prepared, tmp_path):
    prefix = write_megatron(tmp_path / "x", [[[1, 2]], [[1, 2]], [[1, 9, 2]], [[1, 9, 2]]])
    copied(prefix, tmp_path / "out", tokenizer=prepared / "tokenizer.model", vocab_size=None, val_fraction=0.5)
    data = TokenDataset(tmp_path / "out", "val", 4, "document", 0)
    assert data.target_bytes(0, data.n_samples) >= 0


def test_the_command_and_a_run_without_tokenizer(tmp_path, capsys):
    (tmp_path / "there").mkdir()
    write_flat(tmp_path / "there" / "train.bin", documents(100))
    write_flat(tmp_path / "there" / "val.bin", documents(20))
    out = tmp_path / "out"
    given = ["--tokens", str(tmp_path / "there"), "--out", str(out), "--vocab-size", "500", "--document-end", "499"]
    assert main(["prepare", *given]) == 0
    assert "train            100" in capsys.readouterr().out
    config = write_tiny(tmp_path, out)
    train_here(config, "--model.vocab_size=500", "--schedule.total_steps=2", "--data.packing=document")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["step"], summary["bits_per_byte"]) == (2, None)


def bare(folder):
    return write_flat(folder / "x.bin", documents())


def headed(folder):
    return write_llm_c(folder / "x.bin", documents())


def pair(folder):
    return write_megatron(folder / "x", [documents()])


def text(folder):
    (folder / "x.txt").write_text("x")
    return folder / "x.txt"


WRONG = {
    "nothing": (lambda p: p / "x.bin", {}, r"x\.bin: nothing there"),
    "no ids": (lambda p: write_flat(p / "x.bin", [[]]), {}, r"x\.bin: holds no ids"),
    "odd": (lambda p: cut(bare(p), 1), {}, r"no whole number of uint16 ids"),
    "dtype": (lambda p: write_flat(p / "x.bin", documents(), "<u4"), {"vocab_size": 9}, r"beyond the vocab.*--dtype"),
    "vocabulary": (bare, {"vocab_size": 99}, r"id 499 is beyond .* of 99"),
    "negative": (lambda p: write_flat(p / "x.bin", [[-5, 3]], "<i4"), {"dtype": "int32"}, r"id -5 is beyond"),
    "no size": (
        bare,
        {"vocab_size": None},
        r"--tokenizer FILE.* --vocab-size N",
    ),
    "cut header": (
        lambda p: cut(headed(p), 10),
        {},
        r"header says [\d,]+ ids and [\d,]+ are",
    ),
    "all cut": (lambda p: cut(write_llm_c(p / "x.bin", [[1]]), 100), {}, r"its header says 1 ids and 0 are there"),
    "header's dtype": (
        headed,
        {"dtype": "uint32"},
        r"--dtype uint32: .* leave it",
    ),
    "evaluation": (lambda p: write_llm_c(p / "x.bin", documents(), 20240522), {}, r"an evaluation file of llm\.c"),
    "one document": (
        lambda p: write_flat(p / "x.bin", documents(1)),
        {"document_end": END},
        r"nothing is left for split tr",
    ),
    "no mark": (
        lambda p: write_flat(p / "x.bin", [[1] * 900]),
        {"document_end": 7},
        r"ids without this mark, too",
    ),
    "index cut": (lambda p: cut(pair(p), 8, ".idx"), {}, r"x\.idx: has .* cut short"),
    "ids cut": (lambda p: cut(pair(p), 8, ".bin"), {}, r"x\.bin: has .* cut short"),
    "no index": (lambda p: spoil(pair(p), 0, b"X"), {}, r"not begin with MMIDIDX"),
    "version": (lambda p: spoil(pair(p), 9, b"\2"), {}, r"version 2 of Megatron"),
    "floats": (
        lambda p: spoil(pair(p), 17, b"\7"),
        {},
        r"dtype float32, which are no ids",
    ),
    "index's dtype": (
        pair,
        {"dtype": "int32"},
        r"--dtype: has no effect on",
    ),
    "a key": (bare, {"token_key": "ids"}, r"--token-key: has no effect on"),
    "empty folder": (lambda p: p, {}, r"no file of ids there; known are \.bin files"),
    "text": (
        text,
        {},
        r"no file of ids there; known are \.bin files",
    ),
}


def cut(path, count, suffix=""):
    file = path.with_name(path.name + suffix)
    file.write_bytes(file.read_bytes()[:-count])
    return path


def spoil(prefix, at, data):
    file = prefix.with_name(prefix.name + ".idx")
    content = bytearray(file.read_bytes())
    content[at : at + len(data)] = data
    file.write_bytes(content)
    return prefix


@pytest.mark.fault("F24")
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_corpus_of_ids(case, tmp_path, monkeypatch):
    monkeypatch.setattr(flat, "PIECE_TOKENS", 64)
    monkeypatch.setattr(flat, "LONGEST_DOCUMENT", 200)
    (tmp_path / "in").mkdir()
    make, options, sentence = WRONG[case]
    with pytest.raises(UserError, match=sentence) as caught:
        copied(make(tmp_path / "in"), tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_stop_leaves_nothing_and_what_others_left_goes(tmp_path, monkeypatch):
    path, out = write_flat(tmp_path / "x.bin", documents()), tmp_path / "out"

    def stopped(point):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(copy, "fault_point", stopped)
        with pytest.raises(KeyboardInterrupt):
            copied(path, out, document_end=END)
    assert not out.exists()
    left = out / PARTIAL
    left.mkdir(parents=True)
    (left / "train-00099.bin").write_bytes(b"left")
    copied(path, out, document_end=END)
    assert not (out / "train-00099.bin").exists()
    verify(out)


@pytest.mark.fault("F24")
def test_folders_of_datasets_that_hold_no_ids(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"], "labels": [[0.5]]}).save_to_disk(str(tmp_path / "x"))
    for options, sentence in (
        ({}, r"--token-key input_ids: .* has no such column; it has text, labels"),
        ({"token_key": "text"}, r"--token-key text: this column of .* holds string, expected lists of integers"),
        ({"token_key": "labels"}, r"holds list<.*double>, expected lists of integers"),
        ({"dtype": "int32"}, r"--dtype: has no effect on .*, whose rows are documents"),
    ):
        with pytest.raises(UserError, match=sentence):
            copied(tmp_path / "x", tmp_path / "out", **options)
    datasets.Dataset.from_dict({"input_ids": [[1, 2], None]}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"a row of input_ids has nothing in place of ids"):
        copied(tmp_path / "none", tmp_path / "out")
    (tmp_path / "x" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"--tokens .*: datasets cannot read it"):
        copied(tmp_path / "x", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tokens", "x"], "--out: missing"),
        (["--tokens", "x", "--out", "o", "--max-tokens", "9"], "--max-tokens: has no effect with --tokens"),
        (["--text", "x", "--out", "o", "--dtype", "int32"], "--dtype: has no effect without --tokens"),
        (["--text", "x", "--out", "o", "--document-end", "3"], "--document-end: has no effect without --tokens"),
        (["--tokens", "x", "--out", "o", "--text-key", "y"], "--text-key: has no effect without"),
    ],
)
def test_options_that_contradict_each_other(arguments, sentence, capsys):
    assert main(["prepare", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert piece.PIECE_TOKENS < flat.LONGEST_DOCUMENT
