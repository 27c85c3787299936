"""Checkpoints damaged on the disk: whatever is flipped, cut or gone, it is found and the one before is used."""

import dataclasses
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from growth_runs import checkpoint, names
from support import edit_checkpoint, train_here, write_tiny

from model.errors import UserError
from pretrain.checkpoint.manifest import BrokenCheckpoint, parse_manifest, read_manifest, seal
from pretrain.checkpoint.store import CheckpointStore

OPTIONS = ["--train.max_steps=4", "--schedule.total_steps=6", "--checkpoint.every=2", "--train.global_batch_size=2"]
FILES = ("manifest.json", "config.toml", "state.json", "tokenizer.model", "tensors-00000.safetensors")


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A folder with tiny.toml and its run, whose checkpoints are of step 2 and 4."""
    folder = tmp_path_factory.mktemp("integrity")
    assert train_here(write_tiny(folder, corpus), *OPTIONS) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained / "run", tmp_path / "run")


@pytest.mark.fault("F40")
def test_every_bit_of_a_manifest_counts(trained):
    """And every cut, and stretches of zeros: never taken for a good one, nor for one of another version."""
    folder = checkpoint(trained / "run", 4)
    whole = (folder / "manifest.json").read_bytes()
    assert parse_manifest(whole, folder) == read_manifest(folder)
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BrokenCheckpoint):
            parse_manifest(bytes(flipped), folder)
    for length in range(len(whole)):
        with pytest.raises(BrokenCheckpoint):
            parse_manifest(whole[:length], folder)
        with pytest.raises(BrokenCheckpoint):
            parse_manifest(whole[:length] + bytes(len(whole) - length), folder)
    for more in (b"\n", b" ", b"\0", whole):
        with pytest.raises(BrokenCheckpoint):
            parse_manifest(whole + more, folder)


@pytest.mark.fault("F40")
def test_a_manifest_of_version_3_is_still_read_and_resumed(trained, run, capsys):
    folder = checkpoint(run, 4)
    fields = json.loads((folder / "manifest.json").read_bytes())
    own = fields.pop("manifest_sha256")
    old = fields | {"format_version": 3}
    (folder / "manifest.json").write_text(json.dumps(old, indent=1) + "\n")
    assert read_manifest(folder) == dataclasses.replace(read_manifest(checkpoint(trained / "run", 4)), format_version=3)
    assert train_here(trained / "tiny.toml", *OPTIONS, f"--run.dir={run}", "--train.max_steps=5") == 0
    assert "at step 4" in capsys.readouterr().out
    # Neither version becomes the other by a change of one place.
    for mixed in (json.dumps(fields), json.dumps(old | {"manifest_sha256": own}), seal(old).decode()):
        with pytest.raises(BrokenCheckpoint, match="its own sha256"):
            parse_manifest(mixed.encode(), folder)


@pytest.mark.fault("F40")
def test_a_whole_manifest_of_another_version_is_no_damage(run):
    edit_checkpoint(checkpoint(run, 4), format_version=6)
    with pytest.raises(UserError, match="written in checkpoint format 6, this version reads 3 to 5"):
        CheckpointStore(run).newest_good(print)
    assert names(run) == ["step-00000002", "step-00000004"]


def damaged(data: bytes, how: str) -> bytes:
    if how == "cut":
        return data[: len(data) * 2 // 3]
    if how == "zeroed":
        return data[: len(data) // 3] + bytes(len(data) // 8) + data[len(data) // 3 + len(data) // 8 :]
    at = random.Random(len(data)).randrange(len(data))
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


@pytest.mark.fault("F5")
@pytest.mark.parametrize("how", ["cut", "zeroed", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_its_checkpoint_set_aside(run, name, how):
    path = checkpoint(run, 4) / name
    path.write_bytes(damaged(path.read_bytes(), how))
    said: list[str] = []
    assert CheckpointStore(run).newest_good(said.append) == checkpoint(run, 2)
    assert len(said) == 1
    assert said[0].startswith(f"checkpoint step-00000004 is not usable: {name} ")
    assert names(run) == ["step-00000002", "step-00000004.corrupt"]
    assert (checkpoint(run, 4).with_suffix(".corrupt") / name).is_file()


@pytest.mark.fault("F5")
@pytest.mark.fault("F40")
@pytest.mark.parametrize("name", ["manifest.json", pytest.param(FILES[-1], marks=pytest.mark.slow)])
def test_a_run_goes_on_from_the_one_before(trained, run, name, capsys):
    path = checkpoint(run, 4) / name
    path.write_bytes(damaged(path.read_bytes(), "flipped"))
    capsys.readouterr()
    assert train_here(trained / "tiny.toml", *OPTIONS, f"--run.dir={run}") == 0
    said = capsys.readouterr().out
    assert f"step-00000004 is not usable: {name}" in said
    assert "at step 2" in said
    assert names(run) == ["step-00000002", "step-00000004", "step-00000004.corrupt"]


@pytest.mark.fault("F6")
@pytest.mark.parametrize("name", FILES)
def test_when_all_are_damaged_nothing_begins_anew(trained, run, name):
    for step in (2, 4):
        path = checkpoint(run, step) / name
        path.write_bytes(damaged(path.read_bytes(), "zeroed"))
    metrics = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        with pytest.raises(UserError, match="no usable checkpoint is left"):
            train_here(trained / "tiny.toml", *OPTIONS, f"--run.dir={run}")
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert names(run) == ["step-00000002.corrupt", "step-00000004.corrupt"]


LATEST = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_text(""),
    "garbage": lambda path: path.write_bytes(b"\xff\0../../evil"),
    "nothing": lambda path: path.write_text("step-99999999\n"),
    "dangling": lambda path: path.symlink_to("step-99999999"),
    "link": lambda path: path.symlink_to("step-00000002"),
    "folder": lambda path: (path.mkdir(), (path / "file").write_text("")),
}


@pytest.mark.fault("F7")
@pytest.mark.parametrize("kind", LATEST)
def test_whatever_latest_is_the_best_checkpoint_is_found(trained, run, kind, capsys):
    """And it is written again: a folder in its place is not taken for a full disk."""
    path = run / "checkpoints" / "latest"
    path.unlink()
    LATEST[kind](path)
    capsys.readouterr()
    assert train_here(trained / "tiny.toml", *OPTIONS, f"--run.dir={run}", "--train.max_steps=5") == 0
    said = capsys.readouterr().out
    assert "at step 4" in said
    assert "NOT WRITTEN" not in said
    assert path.read_text() == "step-00000005\n"
    assert (path.with_name("latest.corrupt") / "file").exists() == (kind == "folder")


NO_FOLDERS = {
    "file": lambda path: path.write_text("mine"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "circle": lambda path: path.symlink_to(path.name),
}


@pytest.mark.fault("F7")
@pytest.mark.parametrize("kind", NO_FOLDERS)
def test_what_is_named_as_a_checkpoint_and_is_none_is_set_aside(trained, run, kind, capsys):
    for step in (5, 9):
        NO_FOLDERS[kind](checkpoint(run, step))
    capsys.readouterr()
    assert train_here(trained / "tiny.toml", *OPTIONS, f"--run.dir={run}", "--train.max_steps=5") == 0
    said = capsys.readouterr().out
    assert "step-00000009 is no folder; it is set aside" in said
    assert "NOT WRITTEN" not in said
    assert names(run) == [
        *("step-00000002", "step-00000004", "step-00000005", "step-00000005.corrupt"),
        "step-00000009.corrupt",
    ]
    assert os.path.lexists(checkpoint(run, 9).with_suffix(".corrupt"))


@pytest.mark.fault("F7")
def test_a_linked_checkpoint_is_one_and_pruning_takes_the_link_alone(trained, run, tmp_path):
    elsewhere = shutil.move(checkpoint(run, 4), tmp_path / "step-00000004")
    checkpoint(run, 4).symlink_to(elsewhere)
    store = CheckpointStore(run)
    assert store.newest_good(print) == checkpoint(run, 4)
    store.prune(0, print)
    assert names(run) == []
    assert (Path(elsewhere) / "manifest.json").exists()


@pytest.fixture
def nobody():
    """An effective user to whom modes apply, where the tests run as root; and a folder that it may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        user = os.geteuid()
        yield Path(folder), (lambda: os.seteuid(65534)) if user == 0 else (lambda: None)
        os.seteuid(user)
        for path in Path(folder).rglob("*"):
            path.chmod(0o755)


@pytest.mark.fault("F7")
@pytest.mark.parametrize("what", ["", "step-00000004", "step-00000004/manifest.json"])
def test_what_this_user_may_not_read_is_left_as_it_is(run, nobody, what):
    """It may be whole: another user set it up, and no older one is taken in its place."""
    folder, become = nobody
    shutil.copytree(run, folder / "run")
    (folder / "run" / "checkpoints" / what).chmod(0)
    become()
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)|cannot be read \(\[Errno 13\]"):
        CheckpointStore(folder / "run").newest_good(print)


LEFT = {
    "latest": ("checkpoints/latest", "checkpoints/lock"),
    "metrics": ("metrics.jsonl", "resolved.toml", "checkpoints/lock"),
    "metrics alone": ("metrics.jsonl",),
    "summary": ("summary.json", "checkpoints/lock"),
    "all": ("summary.json", "metrics.jsonl", "resolved.toml", "checkpoints/latest", "checkpoints/lock"),
}


@pytest.mark.fault("F36")
@pytest.mark.parametrize("left", LEFT)
def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(trained, run, tmp_path, left):
    folder = tmp_path / "left"
    for name in LEFT[left]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / name, folder / name)
        if name == "resolved.toml":  # as of a run that has gone on past its second checkpoint
            (folder / name).write_text((folder / name).read_text().replace("every = 2", "every = 1"))
    before = {name: (folder / name).read_bytes() for name in LEFT[left] if "lock" not in name}
    with pytest.raises(UserError, match=r"has no checkpoint left, but .*so it had some.*choose another run\.dir"):
        train_here(trained / "tiny.toml", *OPTIONS, f"--run.dir={folder}")
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.fault("F36")
def test_a_run_killed_before_its_first_checkpoint_begins_anew(trained, run, tmp_path):
    folder = tmp_path / "left"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("metrics.jsonl", "resolved.toml", "checkpoints/lock"):
        shutil.copy(run / name, folder / name)
    text = (folder / "resolved.toml").read_text()
    (folder / "resolved.toml").write_text(text.replace("every = 2", "every = 1000"))
    assert train_here(trained / "tiny.toml", *OPTIONS, f"--run.dir={folder}") == 0
