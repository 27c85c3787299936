"""A corpus that changes at equal size, or is cut while it is read: found before it trains, in one sentence."""

import json
import os
import random
import re
import shutil
import signal

import numpy as np
import pytest
from corpora import flip
from processes import Process, run_command
from support import logged, tensor_hashes, train_here

from model.errors import UserError
from pretrain.cli import main
from pretrain.data import verify as verifying
from pretrain.data.blocks import BLOCK_BYTES, DIGEST_BYTES, BlockHasher, digest
from pretrain.data.dataset import TokenDataset
from pretrain.data.manifest import FileEntry, load_manifest
from pretrain.data.shards import ShardWriter
from pretrain.data.sound import MOST_OPEN, SoundFiles
from pretrain.data.verify import check_at_start, verify

pytestmark = [pytest.mark.fault("F37"), pytest.mark.fault("F23")]

DATA = ("train-00000.bin", "train.index.bin", "val-00000.bin", "val.index.bin", "val.bytes.bin")


@pytest.fixture
def own(corpus, tmp_path):
    """A copy of the corpus."""
    return shutil.copytree(corpus, tmp_path / "own")


@pytest.fixture
def unlisted(own):
    """A copy as an earlier version prepared it, without hashes of its blocks."""
    (own / "blocks.json").unlink()
    return own


def run_of(tiny, folder, *options) -> int:
    return train_here(tiny, f"--data.path={folder}", "--train.max_steps=2", *options)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", DATA)
def test_a_flipped_bit_is_found_at_the_start(own, name, listed):
    """Small corpora are compared whole, with hashes of blocks or without."""
    if not listed:
        (own / "blocks.json").unlink()
    check_at_start(own)
    flip(own / name, (own / name).stat().st_size // 2)
    with pytest.raises(UserError, match=f"{re.escape(name)}: its contents changed since it was written"):
        check_at_start(own)


@pytest.mark.parametrize("listed", [True, False])
def test_train_eval_and_resume_refuse_a_reversed_shard(tiny, tmp_path, corpus, own, listed, capsys):
    if not listed:
        (own / "blocks.json").unlink()
    run_of(tiny, own)
    said = "has no hashes of its blocks" in capsys.readouterr().out
    assert said != listed
    for name in ("train-00000.bin", "val-00000.bin"):
        shard = own / name
        np.fromfile(shard, "<u2")[::-1].tofile(shard)
        with pytest.raises(UserError, match=f"{name}: its contents changed"):
            run_of(tiny, own, "--train.max_steps=4")
        assert main(["eval", str(tmp_path / "run"), "--data", str(own)]) == 2
        shutil.copy(corpus / name, shard)
    assert run_of(tiny, own, "--train.max_steps=4") == 0


@pytest.mark.parametrize("name", ["train-00000.bin", "train.index.bin"])
def test_no_byte_is_trained_on_that_changed(tiny, tmp_path, own, name, monkeypatch):
    """Even where the sample of a start misses it: the block is compared when it is first read."""
    monkeypatch.setattr(verifying, "SAMPLED_BLOCKS", 0)
    flip(own / name, 8)
    with pytest.raises(UserError, match=f"{re.escape(name)}: its contents changed"):
        run_of(tiny, own, "--data.packing=document")
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not logged(tmp_path / "run")


def large(folder, tokens=3_000_000):
    """A shard of some blocks, its manifest entry, and their digests."""
    writer = ShardWriter(folder, "train", np.dtype("<u2"), tokens)
    writer.add(np.random.default_rng(0).integers(0, 300, tokens).tolist(), 1)
    writer.close()
    return writer.files[0], dict(writer.blocks)


@pytest.fixture
def listed_blocks(tmp_path):
    from pretrain.data.blocks import Blocks

    entry, digests = large(tmp_path)
    blocks = Blocks(
        format="sparlow-blocks", format_version=1, manifest_sha256="", block_bytes=BLOCK_BYTES, files=digests
    )
    return SoundFiles(tmp_path, [entry], blocks), tmp_path / entry.name, entry


def test_every_byte_belongs_to_a_block_that_is_compared(listed_blocks, tmp_path):
    files, path, entry = listed_blocks
    seed = int(os.environ.get("SPARLOW_TEST_SEED", "0"))
    print(f"SPARLOW_TEST_SEED={seed}")
    rng = random.Random(seed)
    at = [0, BLOCK_BYTES - 1, BLOCK_BYTES, entry.bytes - 1, *(rng.randrange(entry.bytes) for _ in range(20))]
    for byte in at:
        flip(path, byte)
        fresh = SoundFiles(tmp_path, [entry], None)
        fresh.__dict__.update({key: files.__dict__[key] for key in ("_digests", "_block_bytes")})
        fresh._known = [bytearray(len(files._known[0]))]
        with pytest.raises(UserError, match="its contents changed"):
            fresh.read(0, byte, 1)
        elsewhere = (byte + 2 * BLOCK_BYTES) % entry.bytes
        if elsewhere // BLOCK_BYTES != byte // BLOCK_BYTES:
            assert len(fresh.read(0, elsewhere, 1)) == 1
        flip(path, byte)
    assert files.read(0, 0, entry.bytes) == path.read_bytes()


def test_a_change_after_a_block_was_compared_is_found_too(listed_blocks):
    files, path, _ = listed_blocks
    files.read(0, 100, 500)
    with path.open("r+b") as file:
        file.write(b"another text")
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match="its contents changed since it was written, between byte 0 and 1048576"):
        files.read(0, 100, 500)


def test_a_block_is_read_once(listed_blocks, monkeypatch):
    files, _, entry = listed_blocks
    sizes, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: sizes.append(size) or pread(file, size, at))
    for start in range(0, entry.bytes - 600, 50_000):
        files.read(0, start, 514)
    assert sum(size > 514 for size in sizes) == -(-entry.bytes // BLOCK_BYTES)


def test_the_digests_are_of_the_blocks_however_they_were_written():
    data = random.Random(1).randbytes(3 * BLOCK_BYTES + 17)
    expected = b"".join(digest(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)).hex()
    for step in (len(data), BLOCK_BYTES, 700_001):
        hasher = BlockHasher()
        for at in range(0, len(data), step):
            hasher.update(data[at : at + step])
        assert hasher.hexdigest() == expected
    assert len(expected) == 2 * 4 * DIGEST_BYTES


CUT = """
import os, sys
from pretrain.data.dataset import TokenDataset
from model.errors import UserError
for argument in sys.argv[1:]:
    folder, name = os.path.split(argument)
    data = TokenDataset(folder, "val", 16, "concat", 0)
    data.batch(0, 1), data.target_bytes(0, 1)
    os.truncate(argument, 2)
    try:
        for row in range(data.n_samples):
            data.batch(row, 1), data.target_bytes(row, 1)
    except UserError as error:
        print("SENTENCE", error)
"""


def test_a_file_cut_while_it_is_read_is_a_sentence(corpus, tmp_path):
    """With a memory map the process ended by SIGBUS."""
    cut = []
    for name in ("val-00000.bin", "val.index.bin", "val.bytes.bin"):
        for listed in (True, False):
            folder = shutil.copytree(corpus, tmp_path / f"{name} {listed}")
            cut.append(folder / name)
            if not listed:
                (folder / "blocks.json").unlink()
    (tmp_path / "cut.py").write_text(CUT)
    process = Process(str(tmp_path / "cut.py"), *map(str, cut))
    output, _ = process.communicate()
    assert process.returncode == 0, (signal.Signals(-process.returncode), output)
    said = re.findall(r"SENTENCE (.*): ends at byte 2, where the manifest says \d+: it was cut", output)
    assert said == [str(path) for path in cut]


def test_a_run_whose_shard_is_cut_while_it_trains_says_so(tiny, tmp_path, own, monkeypatch):
    from pretrain.loop import train

    step = train.train_step

    def cuts_in_the_second(run, lr):
        if run.state.step == 1:
            os.truncate(own / "train-00000.bin", 100)
        return step(run, lr)

    monkeypatch.setattr(train, "train_step", cuts_in_the_second)
    with pytest.raises(UserError, match=r"train-00000\.bin: ends at byte 100, where .* cut while it was being read"):
        run_of(tiny, own, "--train.max_steps=6")


def test_verify_compares_all_and_writes_the_hashes_of_blocks(unlisted, corpus, capsys):
    """Of a folder that an earlier version prepared, too; its manifest, which runs know it by, stays as it is."""
    before = TokenDataset(unlisted, "train", 16, "concat", 0).fingerprint
    assert main(["prepare", "--verify", str(unlisted)]) == 0
    assert "is as it was written: 7 files, 0.00 GB; wrote the hashes of its blocks" in capsys.readouterr().out
    assert (unlisted / "blocks.json").read_bytes() == (corpus / "blocks.json").read_bytes()
    assert TokenDataset(unlisted, "train", 16, "concat", 0).fingerprint == before
    assert main(["prepare", "--verify", str(unlisted)]) == 0
    assert "wrote" not in capsys.readouterr().out
    for name in (*DATA, "train.bytes.bin", "tokenizer.model"):
        flip(unlisted / name, (unlisted / name).stat().st_size - 1)
        assert main(["prepare", "--verify", str(unlisted)]) == 2
        assert f"{name}: its contents changed" in capsys.readouterr().err
        flip(unlisted / name, (unlisted / name).stat().st_size - 1)
    assert main(["prepare", "--verify", str(unlisted), "--out", "x"]) == 2


BROKEN = ["", "{", "[" * 10_000, "null", "{}", '{"files": {"a": 1}}', "\0", '{"block_bytes": 0}']


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_list_of_blocks_counts_as_none(own, text):
    (own / "blocks.json").write_text(text)
    assert "has no hashes of its blocks" in check_at_start(own)
    TokenDataset(own, "train", 16, "concat", 0).batch(0, 1)


def test_a_damaged_list_of_blocks_is_told_from_damaged_data(own):
    blocks = json.loads((own / "blocks.json").read_text())
    digests = blocks["files"]["train-00000.bin"]
    blocks["files"]["train-00000.bin"] = ("1" if digests[0] == "0" else "0") + digests[1:]
    (own / "blocks.json").write_text(json.dumps(blocks))
    with pytest.raises(UserError, match=r"blocks\.json is damaged, though train-00000\.bin is sound; .* --verify"):
        TokenDataset(own, "train", 16, "concat", 0).batch(0, 1)
    assert "wrote the hashes" in verify(own)
    check_at_start(own)


def test_the_hashes_of_another_corpus_are_not_used(own):
    manifest = json.loads((own / "manifest.json").read_text())
    (own / "manifest.json").write_text(json.dumps(manifest))  # other bytes, the same corpus
    assert "has no hashes of its blocks" in check_at_start(own)


def test_files_of_a_large_corpus_are_compared_up_to_a_limit(own, monkeypatch):
    (own / "blocks.json").unlink()
    index = load_manifest(own).val.index.bytes
    monkeypatch.setattr(verifying, "WHOLE_BYTES", 3 * index)
    flip(own / "train-00000.bin", 0)
    assert "compared 0.00 of" in check_at_start(own)
    flip(own / "val.index.bin", 0)
    with pytest.raises(UserError, match=r"val\.index\.bin: its contents changed"):
        check_at_start(own)


def test_more_shards_than_a_process_may_open(tmp_path):
    entries = []
    for number in range(MOST_OPEN + 20):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]))
        entries.append(FileEntry(name=f"{number}.bin", bytes=1, sha256="", tokens=1))
    files = SoundFiles(tmp_path, entries, None)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [files.read(number, 0, 1)[0] for number in range(len(entries))] == list(range(len(entries)))
    assert len(os.listdir("/proc/self/fd")) <= before + MOST_OPEN
    del files
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_corpus_of_an_earlier_version_resumes(tiny, tmp_path, unlisted, capsys):
    """Its run goes on as before, and to the same end, also once it has hashes of its blocks."""
    run_of(tiny, unlisted)
    assert main(["prepare", "--verify", str(unlisted)]) == 0
    run_of(tiny, unlisted, "--train.max_steps=4")
    run_of(tiny, unlisted, "--train.max_steps=4", f"--run.dir={tmp_path}/straight")
    assert tensor_hashes(tmp_path / "run", 4) == tensor_hashes(tmp_path / "straight", 4)


def test_a_name_longer_than_a_file_can_have(own):
    manifest = (own / "manifest.json").read_text()
    (own / "manifest.json").write_text(manifest.replace("train.index.bin", "x" * 70_000))
    with pytest.raises(UserError, match=r"manifest\.json: not a manifest .*train\.index\.name"):
        load_manifest(own)


@pytest.mark.fault("F31")
@pytest.mark.parametrize("cursor", [10**18, 2**63, 10**30])
def test_cursors_beyond_all_data(corpus, cursor):
    data = TokenDataset(corpus, "train", 16, "concat", 0)
    assert data.batch(cursor, 3).tokens.shape == (3, 16)
    assert data.count(cursor, 3) == (48, 48)


def test_the_command_says_it_in_one_sentence(tiny, own):
    flip(own / "train-00000.bin", 5)
    status, output = run_command("train", str(tiny), f"--data.path={own}", "--train.max_steps=1")
    assert status == 2
    assert "Traceback" not in output
    assert re.search(r"sparlow train: .*train-00000\.bin: its contents changed since it was written", output)
