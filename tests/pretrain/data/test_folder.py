"""`--hf` on a local folder: every file of a known type, as it stands in the file, and the hub's words for splits."""

import argparse
import gzip
import hashlib
import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from model.errors import UserError
from pretrain.cli import main
from pretrain.commands import prepare
from pretrain.data.documents import Document, SkipLog, readable
from pretrain.data.manifest import load_manifest
from pretrain.data.sources.folder import FolderSource


def rows(*values) -> bytes:
    return b"".join(json.dumps({"text": value}).encode() + b"\n" for value in values)


def read(folder, split="train", key="text") -> tuple[list[str], SkipLog]:
    log = SkipLog()
    return [t.text for t in readable(FolderSource(folder, None, split, key, 0.05).records(), log)], log


def test_all_files_of_the_split_and_the_manifest_covers_them_alone(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("train-00000.jsonl", "extra.jsonl", "more/x.jsonl"):
        (tmp_path / name).write_bytes(rows(name))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["table"]}), tmp_path / "more" / "t.parquet")
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "test.jsonl").write_bytes(rows("test"))
    found, log = read(tmp_path)
    assert found == ["extra.jsonl", "table", "more/x.jsonl", "train-00000.jsonl"]
    assert log.counts == {"card of the data set": 1, "of split test": 1}
    before = FolderSource(tmp_path, None, "train", "text", 0.05).describe()
    (tmp_path / "test.jsonl").write_bytes(rows("TEST", "more"))
    (tmp_path / "README.md").write_text("another card")
    assert FolderSource(tmp_path, None, "train", "text", 0.05).describe() == before
    (tmp_path / "extra.jsonl").write_bytes(rows("EXTRA.jsonl"))
    assert FolderSource(tmp_path, None, "train", "text", 0.05).describe() != before


def test_a_folder_names_the_split_of_its_files_unless_they_do(tmp_path):
    for name in ("test/part-0.jsonl", "test/train-0.jsonl", "data/part-1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(rows(name))
    assert read(tmp_path)[0] == ["data/part-1.jsonl", "test/train-0.jsonl"]
    assert read(tmp_path, "test")[0] == ["test/part-0.jsonl"]


def test_a_validation_split_is_held_out_early_and_whole(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.jsonl").write_bytes(rows(*(f"row {i}" for i in range(200))))
    (tmp_path / "data" / "dev.jsonl").write_bytes(rows(*(f"held {i}" for i in range(30))))
    documents = list(FolderSource(tmp_path, None, "train", "text", 0.1).records())
    assert [d.raw for d in documents if d.score < 0.1] == [f"held {i}".encode() for i in range(30)]
    assert sum(d.score < 0.1 for d in documents[:110]) == 10
    assert len(documents) == 230


def test_rows_are_divided_where_there_is_no_validation_split(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(rows(*(f"row {i}" for i in range(200))))
    documents = [d for d in FolderSource(tmp_path, None, "train", "text", 0.05).records() if isinstance(d, Document)]
    assert len(documents) == 200
    assert 1 <= sum(d.score < 0.05 for d in documents) <= 25


def test_strings_that_look_like_dates_stay(tmp_path):
    dates = ["2021-01-05", "2020-12-31T10:00:00", "2021-01-05 10:00:00+02:00"]
    (tmp_path / "train.jsonl").write_bytes(rows(*dates))
    assert read(tmp_path) == (dates, SkipLog())


def test_damage_is_counted_and_reading_goes_on(tmp_path, capsys):
    values = [f"a good document of a few words, number {i}, " * 4 for i in range(400)]
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train-0.jsonl").write_bytes(rows(*values[:100]))
    (folder / "train-1.jsonl").write_bytes(json.dumps({"text": values[100], "other": 1}).encode() + b'\n{"id": 4}\n')
    packed = gzip.compress(rows(*(hashlib.sha256(v.encode()).hexdigest() + v for v in values)))
    (folder / "train-2.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "train-3.jsonl").write_bytes(rows(*values[101:110])[:-20])
    pyarrow.parquet.write_table(pyarrow.table({"text": values[:50]}), folder / "train-4.parquet")
    (folder / "train-4.parquet").write_bytes((folder / "train-4.parquet").read_bytes()[:-100])
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2]}), folder / "train-5.parquet")
    (folder / "train-6.jsonl").symlink_to(tmp_path / "absent")
    assert main(["prepare", "--hf", str(folder), "--out", str(tmp_path / "o"), "--vocab-size", "290"]) == 0
    manifest = load_manifest(tmp_path / "o")
    assert manifest.skipped == {
        "dangling link": 1,
        "no text under the key": 3,
        "truncated file": 1,
        "broken JSON": 1,
        "unreadable file": 1,
    }
    assert manifest.train.documents + manifest.val.documents > 100
    assert "left out: 1 x truncated file (first: train-2.jsonl.gz)" in capsys.readouterr().out


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"no file of a known type there"):
        FolderSource(tmp_path, None, "train", "text", 0.05)
    (tmp_path / "train.jsonl").write_bytes(rows("a"))
    for arguments, message in [
        ((None, "absent", "text"), "--split absent: .* it has train"),
        ((None, "train", "absent"), "--text-key absent: .* which has text"),
        (("absent", "train", "text"), "--config absent: a local folder has none"),
    ]:
        with pytest.raises(UserError, match=message):
            FolderSource(tmp_path, *arguments, 0.05)


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl"])
def test_one_file(tmp_path, kind):
    path = tmp_path / f"corpus.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), path)
    else:
        path.write_bytes(b'[{"text": "a"}, {"text": "b"}]' if kind == "json" else rows("a", "b"))
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    source = prepare._source(parser.parse_args(["--hf", str(path)]))
    assert [document.raw for document in source.records()] == [b"a", b"b"]


@pytest.mark.parametrize("name", ["absent.parquet", "data/absent.jsonl.gz", "../absent", "/absent/folder"])
def test_a_path_that_is_not_there_is_no_id(tmp_path, capsys, name):
    assert main(["prepare", "--hf", name, "--out", str(tmp_path / "o")]) == 2
    assert f"--hf {name}: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("divided", [False, True])
def test_what_datasets_saved_to_disk(tmp_path, divided):
    datasets = pytest.importorskip("datasets")
    values = [f"row {i} ü" for i in range(60)]
    data = datasets.Dataset.from_dict({"n": list(range(60)), "text": values})
    saved = datasets.DatasetDict({"train": data, "test": data.select([3])}) if divided else data
    saved.save_to_disk(str(tmp_path / "d"), num_shards={"train": 2, "test": 1} if divided else 2)
    (tmp_path / "d" / "cache-12ab.arrow").write_bytes(b"what map() leaves")
    found, log = read(tmp_path / "d")
    assert found == values
    splits = 2 if divided else 1
    expected = {"description of the data set": 2 * splits + divided, "cache of datasets": 1}
    assert log.counts == expected | ({"of split test": 1} if divided else {})
    with pytest.raises(UserError, match=r"no row of .* has text there; look at .*arrow:1, which has n, text"):
        read(tmp_path / "d", key="body")


def test_both_formats_of_arrow_and_what_is_broken(tmp_path):
    table = pyarrow.table({"other": [1, 2, 3], "text": ["a", None, "c"]})
    for name, create in (("a.arrow", pyarrow.ipc.new_stream), ("b.arrow", pyarrow.ipc.new_file)):
        with create(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "c.arrow").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d.arrow").write_bytes(b"no table at all")
    (tmp_path / "e.arrow").write_bytes(b"")
    found, log = read(tmp_path)
    assert found == ["a", "c", "a", "c"]
    assert log.counts == {"no text under the key": 2, "unreadable file": 3}
