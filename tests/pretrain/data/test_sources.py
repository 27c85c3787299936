"""Sources: every readable document comes out whole, every other one is counted by reason."""

import gzip
import hashlib
import json
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from model.errors import UserError
from pretrain.data.documents import Document, SkipLog, readable
from pretrain.data.sources import stdlib
from pretrain.data.sources.hub import HubSource
from pretrain.data.sources.stdlib import StdlibSource
from pretrain.data.sources.text import SECTION_BYTES, TextSource


def read(*paths, key="text") -> tuple[list[str], SkipLog]:
    log = SkipLog()
    return [text.text for text in readable(TextSource([str(p) for p in paths], key).records(), log)], log


def rows(values) -> bytes:
    return b"".join(json.dumps({"text": value}).encode() + b"\n" for value in values)


def test_plain_files_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.md", "d.rst", "sub/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("no")
    hidden = SkipLog({"hidden file or folder": 1}, {"hidden file or folder": ".hidden"})
    assert read(tmp_path) == (["text of a.md", "text of b.txt", "text of d.rst", "text of sub/c.py"], hidden)


def test_bom_is_stripped_and_crlf_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read(tmp_path)[0] == ["one\r\ntwo\r\n"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"ok \xff\xfe", "invalid UTF-8"),
        (b"a\0b", "NUL byte"),
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"x" * 12_000_000, "line over 10 MB"),
    ],
)
def test_bad_plain_documents(tmp_path, raw, reason):
    (tmp_path / "bad.txt").write_bytes(raw)
    (tmp_path / "good.txt").write_text("good")
    found, log = read(tmp_path)
    assert found == ["good"]
    assert log.counts == {reason: 1}
    assert log.first[reason].startswith("bad.txt")


def test_a_long_line_costs_only_itself(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"before\n" + b"x" * 12_000_000 + b"\nafter\n")
    assert read(tmp_path)[0] == ["before\nafter\n"]


def test_a_long_file_becomes_sections_at_line_ends(tmp_path):
    text = "".join(f"line {i}\n" for i in range(40_000))
    (tmp_path / "a.txt").write_text(text)
    found, _ = read(tmp_path / "a.txt")
    assert "".join(found) == text
    assert len(found) > 5
    assert all(len(section) <= SECTION_BYTES and section.endswith("\n") for section in found)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_rows(tmp_path, suffix):
    values = [f"document {i}\nwith two lines ü" for i in range(50)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": values, "other": range(50)}), path)
    else:
        with pyarrow.output_stream(str(path)) as stream:
            stream.write(rows(values))
    assert read(path) == (values, SkipLog())


def test_bad_rows_are_counted_one_by_one(tmp_path):
    lines = [
        rows(["good"]),
        b'{"text": "cut\n',
        b'{"other": "key"}\n',
        b'{"text": 5}\n',
        b"[1, 2]\n",
        b'{"text": "\\u0000"}\n',
        b'{"text": "\\ud800"}\n',
        b'{"text": "\xff"}\n',
        b'{"text": ""}\n',
        b"[" * 200_000 + b"\n",
        b'{"text": "' + b"x" * 12_000_000 + b'"}\n',
        b"\n",
        rows(["last"]),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"".join(lines))
    found, log = read(tmp_path)
    assert found == ["good", "last"]
    expected = {"broken JSON": 2, "no text under the key": 3, "NUL byte": 1, "invalid UTF-8": 2, "empty": 1}
    assert log.counts == {**expected, "line over 10 MB": 1}
    assert log.first["broken JSON"] == "a.jsonl:2"


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_truncated_stream_keeps_its_beginning(tmp_path, suffix):
    values = [f"document {i} {hashlib.sha256(bytes([i % 256])).hexdigest()}" for i in range(20_000)]
    path = tmp_path / f"a.jsonl.{suffix}"
    with pyarrow.output_stream(str(path)) as stream:
        stream.write(rows(values))
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    found, log = read(path)
    assert 0 < len(found) < len(values)
    assert found == values[: len(found)]
    assert log.counts == {"truncated file": 1}


def test_files_that_are_not_what_their_name_says(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    (tmp_path / "c.jsonl.zst").write_bytes(b"no zstd")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(rows(["good"])))
    (tmp_path / "e.docx").write_bytes(b"")
    found, log = read(tmp_path)
    assert found == ["good"]
    assert log.counts == {"unknown file type": 1, "unreadable file": 3}


def test_parquet_without_text(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None], "n": [1, 2]}), tmp_path / "a.parquet")
    assert read(tmp_path)[1].counts == {"no text under the key": 1}
    assert read(tmp_path, key="n")[1].counts == {"no text under the key": 2}
    assert read(tmp_path, key="absent")[1].counts == {"no text under the key": 2}


def test_wrong_paths(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    for path, message in [
        (tmp_path / "absent", "no such file"),
        (tmp_path / "a.docx", "unknown file type"),
        (tmp_path, "no file of a known type"),
    ]:
        with pytest.raises(UserError, match=message):
            TextSource([str(path)])


def test_stdlib_is_divided_by_the_hash_of_the_name_alone():
    documents = [d for d in StdlibSource().records() if isinstance(d, Document)]
    names = [d.name for d in documents]
    assert len(documents) > 400
    assert names == sorted(set(names))
    assert not [
        n for n in names if {"test", "tests", "idle_test", "encodings", "site-packages"} & set(n.split("/")[:-1])
    ]
    assert len({d.raw for d in documents}) == len(documents)
    for document in documents:
        held_out = int(hashlib.sha256(document.name.encode()).hexdigest(), 16) % 20 == 0
        assert (document.score < 0.05) == held_out


def test_stdlib_leaves_out_tests_short_files_and_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(stdlib, "MIN_BYTES", 1)
    for name in (
        "b.py",
        "copy_of_b.py",
        "test/a.py",
        "encodings/a.py",
        "site-packages/a.py",
        "sub/short.py",
        "sub/c.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = "b" if name == "copy_of_b.py" else name[:-3]
        (tmp_path / name).write_text(f"# {content}\n" * (1 if "short" in name else 100))
    assert [d.name for d in StdlibSource().records()] == ["b.py", "sub/c.py"]


def test_stdlib_counts_what_it_cannot_read(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(stdlib, "MIN_BYTES", 1)
    (tmp_path / "a.py").write_text("# a\n" * 100)
    (tmp_path / "gone.py").symlink_to("absent")
    (tmp_path / "folder.py").mkdir()
    source, log = StdlibSource(), SkipLog()
    assert len(list(readable(source.records(), log))) == source.describe()["files"] == 1
    assert log.counts == {"unreadable file": 2}


def test_stdlib_without_sources_falls_back_to_torch_then_asks_for_text(tmp_path, monkeypatch):
    zipfile.ZipFile(tmp_path / "python311.zip", "w").close()
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    source = StdlibSource()
    assert source.describe()["package"] == "torch"
    assert any(d.name == "nn/functional.py" for d in source.records())
    monkeypatch.setattr(stdlib.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--text"):
        StdlibSource()


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(rows(f"row {i}" for i in range(200)))
    return folder


def test_hub_divides_by_row_index(hub_folder):
    documents = list(HubSource(str(hub_folder), None, "train", True, "text", 0.05).records())
    assert [d.raw for d in documents] == [f"row {i}".encode() for i in range(200)]
    assert 1 <= sum(d.score < 0.05 for d in documents) <= 25


def test_hub_holds_out_a_validation_split_early_and_whole(hub_folder):
    (hub_folder / "validation.jsonl").write_bytes(rows(f"held {i}" for i in range(30)))
    documents = list(HubSource(str(hub_folder), None, "train", True, "text", 0.1).records())
    held_out = [d.raw for d in documents if d.score < 0.1]
    assert held_out == [f"held {i}".encode() for i in range(30)]
    assert sum(d.score < 0.1 for d in documents[:110]) == 10
    assert len(documents) == 230


def test_hub_mistakes(hub_folder, monkeypatch):
    import datasets

    for arguments, message in [
        ((str(hub_folder), None, "absent", True, "text", 0.05), "--split absent: .* it has train"),
        ((str(hub_folder), None, "train", True, "absent", 0.05), "--text-key absent: .* it has text"),
        ((str(hub_folder), "absent", "train", True, "text", 0.05), "--config"),
    ]:
        with pytest.raises(UserError, match=message):
            HubSource(*arguments)

    def offline(*arguments, **options):
        raise ConnectionError("OfflineModeIsEnabled")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="cannot be reached"):
        HubSource("allenai/c4", "en", "train", True, "text", 0.05)
