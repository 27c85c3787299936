"""Random damage to corpora, metrics and texts: read, counted or refused by a UserError, never anything else."""

import gzip
import io
import json
import random
import shutil

import pyarrow
import pyarrow.parquet
import pytest
from fuzzing import fuzz, mutated

from pretrain.checkpoint.store import CheckpointStore
from pretrain.data.dataset import TokenDataset
from pretrain.data.documents import SkipLog, readable
from pretrain.data.manifest import load_manifest
from pretrain.data.sources.folder import FolderSource
from pretrain.data.sources.text import TextSource
from pretrain.data.verify import check_at_start
from pretrain.loop.metrics import Metrics
from pretrain.loop.summary import summary_is_current
from pretrain.report.write import make_report

ROWS = [{"text": f"row {number} ü of a few words", "id": number} for number in range(12)]


def packed_parquet() -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [row["text"] for row in ROWS], "id": list(range(12))}), file)
    return file.getvalue()


def arrow_stream() -> bytes:
    table, file = pyarrow.table({"text": [row["text"] for row in ROWS]}), io.BytesIO()
    with pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = b"id,text\r\n" + b"".join(f'{row["id"]},"{row["text"]}, ""ok"""\r\n'.encode() for row in ROWS)
TEXTS = {
    "txt": b"\xef\xbb\xbf" + LINES,
    "jsonl": LINES,
    "json": json.dumps(ROWS, indent=1).encode(),
    "csv": CSV,
    "tsv": CSV.replace(b",", b"\t"),
    "jsonl.gz": gzip.compress(LINES),
    "csv.gz": gzip.compress(CSV),
    "parquet": packed_parquet(),
    "arrow": arrow_stream(),
}
RECORDS = [
    {"step": step, "train/loss": 5 - step / 9, "train/tokens_seen": 64 * step, "train/flops": 1e9 * step, "x": None}
    for step in range(1, 13)
]
METRICS = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
STAGES = [{"n_layers": 2, "steps": 6, "tokens": 384, "flops": 6e9, "flops_dense_equivalent": 6e9}] * 2
SUMMARY = {"step": 12, "error": None, "tokens_seen": 768, "val_loss": 3.5, "growth_stages": 2, "stages": STAGES}


def texts_case(folder, corpus):
    def case(rng: random.Random) -> None:
        suffix = rng.choice(list(TEXTS))
        path = folder / f"a.{suffix}"
        raw = mutated(rng, TEXTS[suffix])
        if ".gz" in suffix and rng.random() < 0.7:  # damage before packing too, or hardly anything is read
            raw = gzip.compress(mutated(rng, gzip.decompress(TEXTS[suffix])), 1)
        path.write_bytes(raw)
        try:
            source = TextSource([str(path)]) if rng.random() < 0.5 else FolderSource(path, None, "train", "text", 0.1)
            log = SkipLog()
            count = sum(1 for _ in readable(source.records(), log))
            assert count or log.counts
            json.dumps([log.first, source.describe()]).encode()
        finally:
            path.unlink()

    return case


def metrics_case(folder, corpus):
    def case(rng: random.Random) -> None:
        (folder / "metrics.jsonl").write_bytes(mutated(rng, METRICS))
        resumed = rng.randint(0, 14)
        metrics = Metrics(folder, resumed, tensorboard=False, active=True, say=_unexpected)
        metrics.write(resumed + 1, {"train/loss": 1.0})
        assert metrics.has(resumed + 1, "train/loss")
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(set(steps))
        assert steps[-1] == resumed + 1

    return case


def report_case(folder, corpus):
    CheckpointStore(folder)

    def case(rng: random.Random) -> None:
        both = rng.random()
        (folder / "metrics.jsonl").write_bytes(mutated(rng, METRICS) if both < 0.7 else METRICS)
        (folder / "summary.json").write_bytes(mutated(rng, json.dumps(SUMMARY).encode()) if both > 0.3 else b"{}")
        summary_is_current(folder, 12)
        report = make_report([folder])
        report.json().encode()
        report.lines()

    return case


def manifest_case(folder, corpus):
    own = shutil.copytree(corpus, folder / "own")
    manifest, blocks = (own / "manifest.json").read_bytes(), (own / "blocks.json").read_bytes()

    def case(rng: random.Random) -> None:
        (own / "manifest.json").write_bytes(mutated(rng, manifest))
        (own / "blocks.json").write_bytes(mutated(rng, blocks))
        load_manifest(own)
        data = TokenDataset(own, rng.choice(["train", "val"]), 16, rng.choice(["concat", "document"]), 0)
        data.batch(0, 1)
        data.target_bytes(0, 1)

    return case


def shards_case(folder, corpus):
    """Damage of equal size, and the hashes gone in half of the cases: what is read is what was written, or refused."""
    own = shutil.copytree(corpus, folder / "own")
    names = [path.name for path in own.glob("*.bin")]
    blocks = (own / "blocks.json").read_bytes()

    def case(rng: random.Random) -> None:
        name, listed = rng.choice(names), rng.random() < 0.5
        raw = (own / name).read_bytes()
        damaged = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        (own / name).write_bytes(bytes(damaged))
        (own / "blocks.json").unlink(missing_ok=True) if not listed else (own / "blocks.json").write_bytes(blocks)
        try:
            check_at_start(own)
            assert bytes(damaged) == raw, f"{name} differs and was not found"
        finally:
            (own / name).write_bytes(raw)

    return case


CASES = {
    "texts": (texts_case, 14_000, ("F24", "F42")),
    "metrics": (metrics_case, 15_000, ("F41",)),
    "report": (report_case, 10_000, ("F41",)),
    "manifest": (manifest_case, 6_000, ("F23", "F37")),
    "shards": (shards_case, 2_000, ("F23", "F37")),
}
KINDS = [
    pytest.param(kind, marks=[pytest.mark.fault(fault) for fault in faults]) for kind, (_, _, faults) in CASES.items()
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_few(tmp_path, corpus, kind):
    fuzz(kind, 60, CASES[kind][0](tmp_path, corpus))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many(tmp_path, corpus, kind):
    make, cases, _ = CASES[kind]
    fuzz(kind, cases, make(tmp_path, corpus))


def _unexpected(line: str) -> None:
    raise AssertionError(line)
