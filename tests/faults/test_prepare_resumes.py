"""A killed prepare goes on after the shards that it has finished, to the bytes of one that nobody disturbed."""

import gzip
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from pretrain.data import encode
from pretrain.data.documents import SkipLog
from pretrain.data.manifest import read_manifest
from pretrain.data.prepare import PrepareOptions, prepare
from pretrain.data.sources.text import TextSource
from pretrain.data.unfinished import UNFINISHED

SHARD, BATCH = 5000, 4000


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Packed rows and plain files, with some that cannot be used among them."""
    folder = tmp_path_factory.mktemp("text")
    rows = [{"text": f"row {number} of some words that repeat, {number % 7}\n" * 4} for number in range(150)]
    lines = [json.dumps(row) if number % 20 else "{broken" for number, row in enumerate(rows)]
    for name in "ac":
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "b.txt").write_text("".join(f"line {number} of a plain file\n" for number in range(2000)))
    return folder


def run(text: Path, out: Path, said: list[str] | None = None, **options) -> None:
    chosen = PrepareOptions(out=out, vocab_size=300, shard_tokens=SHARD, **options)
    prepare(TextSource([str(text)]), chosen, say=(said if said is not None else []).append)


def run_killed(text: Path, out: Path, fault: str, number: str = "SIGKILL", **options) -> int:
    """In a process of its own, which ends at `fault`; its exit status."""

    def work() -> None:
        os.environ |= {"SPARLOW_FAULT": fault, "SPARLOW_FAULT_SIGNAL": number}
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        run(text, out, **options)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(encode, "BATCH_BYTES", BATCH)


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BATCH_BYTES", BATCH)
        run(text, out)
    return out


@pytest.mark.fault("F14")
@pytest.mark.parametrize("faults", [["prepare_batch:4", "prepare_batch:7"], ["prepare_batch:12"], ["prepare_commit"]])
def test_a_killed_run_goes_on_to_the_same_bytes(text, undisturbed, tmp_path, faults):
    out = tmp_path / "out"
    finished: list[int] = []
    for fault in faults:
        assert run_killed(text, out, fault) == -signal.SIGKILL
        assert not (out / "manifest.json").exists()
        if fault != "prepare_commit":
            finished.append(len(list((out / ".partial").glob("*-0*.bin"))))
    assert finished == sorted(finished)
    said: list[str] = []
    run(text, out, said)
    assert contents(out) == contents(undisturbed)
    assert ("going on after" in "".join(said)) == (faults != ["prepare_commit"])
    assert ("training a tokenizer" in "".join(said)) == (faults == ["prepare_commit"])


@pytest.mark.fault("F14")
def test_finished_shards_are_not_encoded_again(text, tmp_path, monkeypatch):
    out, encoded = tmp_path / "out", []
    run_killed(text, out, "prepare_batch:12")
    state = json.loads((out / ".partial" / UNFINISHED).read_text())
    assert state["splits"]["train"]["files"]
    batches = encode.batches

    def watched(records, divided, log: SkipLog, read: int):
        for batch in batches(records, divided, log, read):
            encoded.append(batch.records)
            yield batch

    monkeypatch.setattr(encode, "batches", watched)
    run(text, out)
    assert encoded[0] > state["records"] > 10
    assert read_manifest(out).skipped == {"broken JSON": 16}


@pytest.mark.fault("F14")
def test_a_stopped_run_keeps_finished_shards_alone(text, undisturbed, tmp_path):
    """SIGINT unwinds the stack: what has no finished shard is taken away, and what has one stays."""
    out = tmp_path / "out"
    assert run_killed(text, out, "prepare_batch:1", "SIGINT") != 0
    assert not out.exists()
    assert run_killed(text, out, "prepare_batch:12", "SIGINT") != 0
    assert (out / ".partial" / UNFINISHED).exists()
    run(text, out)
    assert contents(out) == contents(undisturbed)


@pytest.mark.fault("F14")
@pytest.mark.parametrize("change", ["state", "shard", "open shard", "index", "tokenizer", "options"])
def test_what_is_left_of_another_run_or_damaged_is_done_anew(text, undisturbed, tmp_path, change):
    out = tmp_path / "out"
    run_killed(text, out, "prepare_batch:12")
    left = out / ".partial"
    state = json.loads((left / UNFINISHED).read_text())
    train = state["splits"]["train"]
    if change == "state":
        (left / UNFINISHED).write_text("{")
    elif change == "shard":
        os.truncate(left / train["files"][0]["name"], 7)
    elif change in ("open shard", "index"):
        path = left / train["shard" if change == "open shard" else "index"]["name"]
        path.write_bytes(bytes(path.stat().st_size))
    elif change == "tokenizer":
        (left / "tokenizer.model").unlink()
    said: list[str] = []
    if change == "options":
        run(text, out, said, val_fraction=0.2)
        assert contents(out).keys() != contents(undisturbed).keys() or contents(out) != contents(undisturbed)
    else:
        run(text, out, said)
        assert contents(out) == contents(undisturbed)
    assert "going on" not in "".join(said)


def test_one_file_after_the_other_whatever_is_read_at_once(text, tmp_path, monkeypatch):
    from pretrain.data.sources import text as sources

    expected = list(TextSource([str(text)]).records())
    monkeypatch.setattr(sources, "LARGE_BYTES", 1)
    for width in (1, 2, 8):
        monkeypatch.setattr(sources, "AT_ONCE", width)
        assert list(TextSource([str(text)]).records()) == expected
    shutil.copytree(text, tmp_path / "text")
    (tmp_path / "text" / "b.jsonl.gz").write_bytes(b"no gzip at all")
    found = [record.name for record in TextSource([str(tmp_path / "text")]).records() if "unreadable" in str(record)]
    assert found == ["b.jsonl.gz"]
