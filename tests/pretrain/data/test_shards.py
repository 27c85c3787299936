"""Shards and manifest: what is written is read back, and every damage is one sentence naming the file."""

import json
import shutil

import numpy as np
import pytest

from model.errors import UserError
from pretrain.data.dataset import TokenDataset
from pretrain.data.manifest import FileEntry, load_manifest
from pretrain.data.shards import ShardWriter
from pretrain.data.verify import verify

pytestmark = pytest.mark.fault("F23")


@pytest.mark.parametrize(("dtype", "shard_tokens"), [("<u2", 7), ("<u2", 1000), ("<u4", 10), ("<u4", 1)])
def test_tokens_and_starts_come_back(tmp_path, dtype, shard_tokens):
    documents = [list(range(i, i + 1 + i % 5)) for i in range(20)]
    writer = ShardWriter(tmp_path, "val", np.dtype(dtype), shard_tokens)
    for document in documents:
        writer.add(document, text_bytes=2**33 + len(document))
    index, sizes = writer.close()
    assert np.fromfile(tmp_path / sizes.name, "<u8").tolist() == [2**33 + len(document) for document in documents]
    flat = [token for document in documents for token in document]
    assert np.concatenate([np.fromfile(tmp_path / f.name, dtype) for f in writer.files]).tolist() == flat
    assert [f.tokens for f in writer.files[:-1]] == [shard_tokens] * (len(writer.files) - 1)
    assert (writer.tokens, writer.documents) == (len(flat), 20)
    starts = np.fromfile(tmp_path / index.name, "<u8").tolist()
    assert starts == [sum(map(len, documents[:i])) for i in range(21)]
    assert [f.name for f in writer.files[:1]] == ["val-00000.bin"]
    assert all(isinstance(f, FileEntry) and f.bytes == (tmp_path / f.name).stat().st_size for f in writer.files)


def test_sound_corpus(prepared):
    verify(prepared)
    manifest = load_manifest(prepared)
    assert manifest.train.documents + manifest.val.documents == 40
    assert manifest.dtype == "uint16"


def damage(prepared, what):
    shard, index = prepared / "train-00000.bin", prepared / "train.index.bin"
    manifest = json.loads((prepared / "manifest.json").read_text())
    if what == "missing shard":
        shard.unlink()
    elif what == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:-2])
    elif what == "odd bytes":
        shard.write_bytes(shard.read_bytes() + b"x")
    elif what == "empty shard":
        shard.write_bytes(b"")
    elif what == "folder for a shard":
        shard.unlink()
        shard.mkdir()
    elif what == "truncated index":
        index.write_bytes(index.read_bytes()[:-8])
    elif what == "no manifest":
        (prepared / "manifest.json").unlink()
        return
    elif what == "empty manifest":
        manifest = None
    elif what == "deep manifest":
        (prepared / "manifest.json").write_text("[" * 100_000)
        return
    elif what == "unknown key":
        manifest["surprise"] = 1
    elif what == "other format":
        manifest["format_version"] = 3
    elif what == "path":
        shutil.move(shard, prepared.parent / "train-00000.bin")
        manifest["train"]["files"][0]["name"] = "../train-00000.bin"
    elif what == "absolute path":
        manifest["train"]["files"][0]["name"] = str(shard)
    elif what == "one file twice":
        manifest["val"]["files"][0]["name"] = "train-00000.bin"
    elif what == "wrong sum":
        manifest["train"]["tokens"] += 1
    elif what == "wrong documents":
        manifest["train"]["documents"] += 1
    elif what == "no shards":
        manifest["train"]["files"] = []
    elif what == "negative":
        manifest["train"]["files"][0]["tokens"] = -1
    elif what == "no tokenizer":
        (prepared / "tokenizer.model").unlink()
    elif what == "broken tokenizer":
        (prepared / "tokenizer.model").write_bytes(b"x")
    (prepared / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing shard", r"train-00000\.bin: missing; run sparlow prepare again"),
        ("truncated shard", r"train-00000\.bin: \d+ bytes where the manifest says \d+; run sparlow prepare again"),
        ("odd bytes", r"train-00000\.bin: \d+ bytes where"),
        ("empty shard", r"train-00000\.bin: 0 bytes where"),
        ("folder for a shard", r"train-00000\.bin: missing"),
        ("truncated index", r"train\.index\.bin: \d+ bytes where"),
        ("no manifest", r"no prepared corpus there .*run sparlow prepare"),
        ("empty manifest", r"manifest\.json: not a manifest"),
        ("deep manifest", r"manifest\.json: not a manifest"),
        ("unknown key", r"manifest\.json: not a manifest .*surprise"),
        ("other format", r"manifest\.json: not a manifest .*format_version"),
        ("path", r"manifest\.json: not a manifest .*train\.files\.0\.name"),
        ("absolute path", r"manifest\.json: not a manifest .*train\.files\.0\.name"),
        ("one file twice", r"manifest\.json: names one file twice"),
        ("wrong sum", r"manifest\.json: the figures of split train contradict"),
        ("wrong documents", r"manifest\.json: the figures of split train contradict"),
        ("no shards", r"manifest\.json: the figures of split train contradict"),
        ("negative", r"manifest\.json: not a manifest"),
        ("no tokenizer", r"tokenizer\.model: the tokenizer cannot be read"),
        ("broken tokenizer", r"tokenizer\.model: not a SentencePiece model"),
    ],
)
def test_damage_is_named(prepared, what, message):
    damage(prepared, what)
    with pytest.raises(UserError, match=message) as caught:
        TokenDataset(prepared, "train", 16, "concat", 0)
    assert "\n" not in str(caught.value)


@pytest.mark.fault("F37")
def test_a_flipped_bit_is_found_by_its_hash(prepared):
    for name in ("val-00000.bin", "train.index.bin", "tokenizer.model"):
        raw = bytearray((prepared / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        sound = (prepared / name).read_bytes()
        (prepared / name).write_bytes(bytes(raw))
        with pytest.raises(UserError, match=f"{name}: its contents changed"):
            verify(prepared)
        (prepared / name).write_bytes(sound)
    verify(prepared)
