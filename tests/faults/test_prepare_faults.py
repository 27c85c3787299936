"""What `prepare` meets among a user's files: pipes, devices, files that grow, shrink or make no sense. It ends."""

import contextlib
import gzip
import io
import json
import os
import socket
import threading
import tracemalloc
import zipfile
import zlib

import pyarrow
import pyarrow.parquet
import pytest

from model.errors import UserError
from pretrain.cli import main
from pretrain.data.documents import SkipLog, readable
from pretrain.data.manifest import load_manifest, read_manifest
from pretrain.data.prepare import PrepareOptions, prepare
from pretrain.data.sources.folder import FolderSource
from pretrain.data.sources.text import TextSource
from pretrain.data.tokenizer import SentencePieceTokenizer

pytestmark = [pytest.mark.fault("F42"), pytest.mark.fault("F24")]


def read(*paths) -> tuple[list[str], SkipLog]:
    log = SkipLog()
    return [text.text for text in readable(TextSource([str(path) for path in paths]).records(), log)], log


@pytest.fixture
def words(tmp_path):
    """A folder of text enough for a corpus."""
    folder = tmp_path / "words"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(f"a text {name} of a few words\n" * 20)
    return folder


def command(option, path, out, *more) -> list[str]:
    return ["prepare", option, str(path), "--out", str(out), "--vocab-size", "290", *more]


@pytest.mark.parametrize("option", ["--text", "--hf"])
def test_what_never_ends_is_left_out_or_named(words, tmp_path, option, capsys):
    os.mkfifo(words / "pipe.jsonl")
    (words / "zeros.txt").symlink_to("/dev/zero")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(words / "socket.csv"))
        assert main(command(option, words, tmp_path / "o")) == 0
        assert load_manifest(tmp_path / "o").skipped == {"not a regular file": 3}
        for path in (words / "pipe.jsonl", words / "zeros.txt", words / "socket.csv", "/dev/zero"):
            assert main(command(option, path, tmp_path / "p")) == 2
            assert "neither a file nor a folder" in capsys.readouterr().err


def test_a_tokenizer_or_a_corpus_that_never_ends(words, tmp_path):
    os.mkfifo(tmp_path / "pipe.model")
    for path in ("/dev/zero", tmp_path / "pipe.model", "a\0b", "x" * 300):
        with pytest.raises(UserError, match="the tokenizer cannot be read"):
            SentencePieceTokenizer(path)
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read \(it is no file but a pipe"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "/" + "y/" * 3000])
@pytest.mark.parametrize("option", ["--text", "--hf"])
def test_paths_that_no_system_has(tmp_path, option, name, capsys):
    assert main(command(option, name, tmp_path / "o")) == 2
    assert capsys.readouterr().err.startswith("sparlow prepare: ")
    assert not (tmp_path / "o").exists()


def test_a_file_that_grows_for_ever_is_read_up_to_where_it_was(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"text": "one"}\n' * 1000)
    source, ended = TextSource([str(path)]), threading.Event()

    def grow() -> None:
        with path.open("a") as file:
            while not ended.is_set():
                file.write('{"text": "more"}\n' * 1000)
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        before = source.describe()
        assert [text.text for text in readable(source.records(), SkipLog())] == ["one"] * 1000
        assert source.describe() == before
    finally:
        ended.set()
        writer.join()


@pytest.mark.parametrize("change", ["was cut to 5 bytes", "was removed"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "jsonl.gz", "csv", "parquet"])
def test_a_file_cut_or_removed_while_it_is_read_is_named(words, tmp_path, monkeypatch, change, suffix):
    """In place of advice about --val-fraction for what is left."""
    rows = [f"row {number} of words" for number in range(200)]
    path = words / f"c.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path)
    else:
        text = (
            "text\n" + "\n".join(rows)
            if suffix in ("txt", "csv")
            else "".join(f'{{"text": "{row}"}}\n' for row in rows)
        )
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())

    def change_it(*_) -> None:
        path.unlink() if change == "was removed" else os.truncate(path, 5)

    monkeypatch.setattr("pretrain.data.prepare.division", lambda *arguments: change_it() or divided(*arguments))
    from pretrain.data.survey import division as divided

    with pytest.raises(UserError, match=rf"c\.{suffix}: {change} while prepare was reading; run the same command"):
        prepare(TextSource([str(words)]), PrepareOptions(out=tmp_path / "o", vocab_size=290), say=print)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "jsonl.gz", "csv.gz", "jsonl.zst", "txt"])
def test_an_empty_file_is_counted(words, suffix):
    (words / f"none.{suffix}").write_bytes(b"")
    found, log = read(words)
    assert (len(found), log.counts, log.first) == (2, {"empty": 1}, {"empty": f"none.{suffix}"})


def test_a_packed_file_or_table_without_a_row_is_counted(words):
    (words / "none.jsonl.gz").write_bytes(gzip.compress(b""))
    (words / "none.csv").write_bytes(b"text\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), words / "none.parquet")
    assert read(words)[1].counts == {"empty": 3}


def invalid_parquet() -> bytes:
    raw = pyarrow.array([b"a", b"\xff", b"c"] * 20, pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 60, raw.buffers())
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": column, "\u00e9\u00e9": column}), file)
    return file.getvalue()


MALFORMED = {
    "latin.txt": "gr\u00f6\u00dfe".encode("latin-1"),
    "nul.txt": b"a\0b",
    "wide.txt": b"x" * 12_000_000,
    "wide.jsonl": b'{"text": "' + b"x" * 12_000_000 + b'"}',
    "wide.csv": b"text\n" + b"x" * 12_000_000 + b"\nb\n",
    "cut.jsonl.gz": gzip.compress(b'{"text": "row"}\n' * 9999)[:-30],
    "garbage.jsonl.gz": b"no gzip at all",
    "garbage.csv.zst": b"\x28\xb5\x2f\xfdxxxx",
    "zip.txt": b"PK\3\4" + bytes(30),
    "zip.jsonl": b"PK\3\4" + bytes(30),
    "strings.json": b'[{"text": "\\ud800"}, {"\xff": 1}, {"text": "\xe2\x82"}, {"text": "\\u12"}]',
    "strings.jsonl": b'{"text": "\\udfff"}\n{"\\ud800": 1}\n{"text": \xff}\n{"text": "a\n',
    "deep.jsonl": b"[" * 99_999 + b"\n" + b"{" * 99_999 + b"\n" + b"1" * 9999,
    "strings.csv": b'\xff,text\n\xff,\xfe\n"unclosed, x\n\r\r\n,,,,\n\0\n',
    "strings.tsv": b'text\t\xed\xa0\x80\n"\xed\xa0\x80\t"\n',
    "strings.parquet": invalid_parquet(),
    "name.parquet": invalid_parquet().replace("\u00e9\u00e9".encode(), b"\xff\xfe\xff\xfe"),
    "none.parquet": b"PAR1PAR1",
    "none.arrow": b"ARROW1\0\0",
}


@pytest.mark.parametrize("option", ["--text", "--hf"])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_counted(words, name, option):
    """No more, and no error."""
    (words / name).write_bytes(MALFORMED[name])
    source = TextSource([str(words)]) if option == "--text" else FolderSource(words, None, "train", "text", 0.05)
    log = SkipLog()
    texts = [text.text for text in readable(source.records(), log)]
    assert len(texts) >= 2
    assert log.counts or name == "zip.txt"
    json.dumps([log.first, source.describe()]).encode()


def test_a_key_that_is_no_text_is_shown_escaped(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(b'{"\\ud800\\n": 1}\n')
    assert main(command("--hf", tmp_path / "a.jsonl", tmp_path / "o")) == 2
    assert "which has \\ud800\\n" in capsys.readouterr().err


def test_a_folder_of_malformed_files_and_line_ends(words, tmp_path, capsys):
    for name, raw in MALFORMED.items():
        if not name.startswith("wide"):
            (words / name).write_bytes(raw)
    (words / "crlf.txt").write_bytes(b"\xef\xbb\xbfa line\r\nanother\r\n" * 5)
    with zipfile.ZipFile(words / "texts.zip", "w") as packed:
        packed.writestr("a.txt", "text")
    for option in ("--text", "--hf"):
        assert main(command(option, words, tmp_path / option)) == 0
        manifest = load_manifest(tmp_path / option)
        assert manifest.skipped["unknown file type"] == 1
        assert "\n" not in "".join(manifest.skipped_first.values())
    (tmp_path / "none").mkdir()
    assert main(command("--text", tmp_path / "none", tmp_path / "o")) == 2
    assert "no file of a known type" in capsys.readouterr().err


def bomb(name: str, size: int) -> bytes:
    """Zeros, spaces or commas, a thousand times smaller when packed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    filling = {"jsonl": b" ", "csv": b",", "json": b"["}[name] * (1 << 20)
    return b"".join([packer.compress(filling) for _ in range(size >> 20)] + [packer.flush()])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_a_gzip_bomb_takes_little_memory(words, kind):
    (words / f"bomb.{kind}.gz").write_bytes(bomb(kind, 400 << 20))
    tracemalloc.start()
    try:
        found, log = read(words)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert (len(found), sum(log.counts.values())) == (2, 1)
