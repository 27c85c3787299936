"""The commit protocol from the reader's side: what is accepted, set aside, cleaned and pruned."""

import hashlib
import json
from pathlib import Path

import pytest

from model.errors import UserError
from pretrain.checkpoint.folders import step_folder
from pretrain.checkpoint.manifest import BrokenCheckpoint, read_manifest, verify_hashes
from pretrain.checkpoint.store import CheckpointStore


def commit(store: CheckpointStore, step: int, content: bytes = b"weights") -> Path:
    folder = store.folder / step_folder(step)
    folder.mkdir(parents=True)
    (folder / "tensors-00000.safetensors").write_bytes(content)
    entry = {
        "name": "tensors-00000.safetensors",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest = {
        "format_version": 3,
        "support_layouts": {"element": "tiles 128x128"},
        "step": step,
        "tokens_seen": 0,
        "config_hash": "",
        "data_fingerprint": "",
        "world_size": 1,
        "files": [entry],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def edit(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run")


def test_an_empty_run_has_none(store):
    assert store.newest_good(print) is None


@pytest.mark.fault("F7")
def test_the_newest_good_one_wins_whatever_latest_says(store):
    commit(store, 10)
    newest = commit(store, 20)
    for hint in ("", "step-00000010", "\x00garbage", "step-99999999"):
        (store.folder / "latest").write_text(hint)
        assert store.newest_good(print) == newest


@pytest.mark.fault("F5")
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_broken_one_is_set_aside_with_its_reason(store, damage):
    older, newer = commit(store, 10), commit(store, 20)
    target = newer / ("manifest.json" if damage == "manifest" else "tensors-00000.safetensors")
    if damage == "truncate":
        target.write_bytes(b"weig")
    elif damage == "flip":
        target.write_bytes(b"weightz")
    elif damage == "manifest":
        target.write_text("{")
    else:
        target.unlink()
    said: list[str] = []
    assert store.newest_good(said.append) == older
    assert len(said) == 1
    assert target.name in said[0]
    assert (store.folder / "step-00000020.corrupt").is_dir()


@pytest.mark.fault("F6")
def test_all_broken_is_an_error_and_never_a_fresh_start(store):
    folder = commit(store, 10)
    (folder / "tensors-00000.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="no usable checkpoint is left"):
        store.newest_good(lambda _: None)
    with pytest.raises(UserError, match="no usable checkpoint is left"):  # nor at the next start
        store.newest_good(lambda _: None)


@pytest.mark.fault("F8")
@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a/b", "..", ""])
def test_a_manifest_cannot_reach_outside_its_folder(store, name):
    """Even where there is such a file, of that size."""
    folder = commit(store, 10)
    if not (folder / name).exists():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    edit(folder, files=[{"name": name, "bytes": (folder / name).stat().st_size, "sha256": ""}])
    with pytest.raises(BrokenCheckpoint, match="not a plain file of the folder"):
        read_manifest(folder)


@pytest.mark.fault("F8")
def test_links_duplicates_and_other_formats_are_refused(store, tmp_path):
    folder = commit(store, 10)
    entry = json.loads((folder / "manifest.json").read_text())["files"][0]
    edit(folder, files=[entry, entry])
    with pytest.raises(BrokenCheckpoint, match="twice"):
        read_manifest(folder)
    edit(folder, files=[entry], format_version=1)
    with pytest.raises(UserError, match="checkpoint format 1"):
        read_manifest(folder)
    edit(folder, format_version=3, support_layouts={"element": "tiles 64x64"})
    with pytest.raises(UserError, match="tiles 64x64"):
        read_manifest(folder)
    for damaged in ([], "tiles 128x128", None):
        edit(folder, support_layouts=damaged)
        with pytest.raises(BrokenCheckpoint, match="cannot be read"):
            read_manifest(folder)
    edit(folder, support_layouts={}, files=[entry | {"name": 7}])
    with pytest.raises(BrokenCheckpoint, match="cannot be read"):
        read_manifest(folder)
    edit(folder, files=[entry])
    outside = tmp_path / "outside"
    outside.write_bytes(b"weights")
    (folder / entry["name"]).unlink()
    (folder / entry["name"]).symlink_to(outside)
    with pytest.raises(BrokenCheckpoint, match="plain file"):
        read_manifest(folder)
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BrokenCheckpoint, match="cannot be read"):
        read_manifest(folder)


def test_hashes_are_really_checked(store):
    folder = commit(store, 10)
    verify_hashes(folder, read_manifest(folder))
    edit(folder, files=[{"name": "tensors-00000.safetensors", "bytes": 7, "sha256": "0" * 64}])
    with pytest.raises(BrokenCheckpoint, match="sha256"):
        verify_hashes(folder, read_manifest(folder))


def test_prune_keeps_the_newest(store):
    for step in (10, 20, 30, 40):
        commit(store, step)
    store.prune(2, print)
    assert [path.name for path in store.folders()] == ["step-00000040", "step-00000030"]


def test_clean_removes_leftovers_only(store):
    commit(store, 10)
    (store.folder / "step-00000020.tmp.123").mkdir()
    (store.folder / "step-00000005.deleting").mkdir()
    (store.folder / "step-00000003.corrupt").mkdir()
    store.clean()
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000003.corrupt", "step-00000010"]


@pytest.mark.fault("F30")
def test_a_second_process_is_refused(store):
    store.lock()
    with pytest.raises(UserError, match="in use by process"):
        CheckpointStore(store.folder.parent).lock()
    store.unlock()
    CheckpointStore(store.folder.parent).lock()


@pytest.mark.fault("F13")
def test_a_file_in_place_of_the_run_folder_is_one_sentence(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"run\.dir"):
        CheckpointStore(tmp_path / "run").lock()
