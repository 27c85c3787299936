"""A Git LFS pointer in the place of any file that is read is named as one, in one sentence, and never set aside."""

import json
from pathlib import Path

import pytest

from model.errors import UserError
from model.hf import load_folder
from pretrain.checkpoint.manifest import read_manifest
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config import load_config
from pretrain.loop.metrics import Metrics
from pretrain.report.logged import _records
from pretrain.report.summary import read_summary

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n".format("0" * 64)
FILES = ("manifest.json", "config.toml", "state.json", "tokenizer.model", "tensors-00000.safetensors")


def pointer(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(POINTER)
    return folder


def said(path: Path) -> str:
    return rf"{path.name}: Git LFS pointer instead of the file \(git lfs pull fetches it\)$"


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_waits_for_the_file_to_be_fetched(tmp_path, name):
    store = CheckpointStore(tmp_path)
    folder = store.folder / "step-00000010"
    folder.mkdir(parents=True)
    entries = [{"name": each, "bytes": 999, "sha256": ""} for each in FILES[1:]]
    for each in FILES[1:]:
        (folder / each).write_bytes(b"x" * 999)
    manifest = {
        "format_version": 3, "support_layouts": {}, "step": 10, "tokens_seen": 0, "config_hash": "",
        "data_fingerprint": "", "world_size": 1, "files": entries,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(folder).step == 10
    pointer(folder, name)
    with pytest.raises(UserError, match=said(folder / name)):
        store.newest_good(print)
    assert store.folders() == [folder]


def test_a_configuration(tmp_path):
    path = pointer(tmp_path, "run.toml") / "run.toml"
    with pytest.raises(UserError, match=said(path)):
        load_config(path, [])


LLAMA = {
    "model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8,
    "vocab_size": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (None, "config.json"),
        (None, "model.safetensors"),
        (None, "model.safetensors.index.json"),
        ({"weight_map": {"a": "model-1.safetensors"}}, "model-1.safetensors"),
    ],
)
def test_a_hugging_face_folder(tmp_path, index, name):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    pointer(tmp_path, name)
    with pytest.raises(UserError, match=said(tmp_path / name)):
        load_folder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 5}', "\xff"])
def test_a_damaged_index_of_weights_is_a_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"index\.json: not an index of weight files"):
        load_folder(tmp_path)


def test_a_run_that_is_reported_or_goes_on(tmp_path):
    pointer(pointer(tmp_path, "metrics.jsonl"), "summary.json")
    for read, name in ((_records, "metrics.jsonl"), (read_summary, "summary.json")):
        with pytest.raises(UserError, match=said(tmp_path / name)):
            read(tmp_path)
    with pytest.raises(UserError, match=said(tmp_path / "metrics.jsonl")):
        Metrics(tmp_path, 0, tensorboard=False, active=True, say=print)
    assert (tmp_path / "metrics.jsonl").read_text() == POINTER
