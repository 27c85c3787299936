"""Files reach a corpus once each; whatever is left out is counted, in the manifest and in the printed lines."""

import argparse
import gzip
import json
import os
import tomllib

import pyarrow
import pyarrow.parquet
import pytest

from model.errors import UserError
from pretrain.cli import main
from pretrain.commands import bench
from pretrain.data.documents import Document, SkipLog, readable
from pretrain.data.manifest import load_manifest
from pretrain.data.sources.text import TextSource
from pretrain.data.tokenizer import SentencePieceTokenizer
from tests.support import ROOT


def read(*paths, key="text") -> tuple[list[str], SkipLog]:
    log = SkipLog()
    return [text.text for text in readable(TextSource([str(p) for p in paths], key).records(), log)], log


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_links_to_folders_are_followed(tmp_path):
    write(tmp_path / "far", a="far a", b="far b")
    write(tmp_path / "t", own="own").joinpath("link").symlink_to(tmp_path / "far")
    found, log = read(tmp_path / "t")
    assert found == ["far a", "far b", "own"]
    assert log == SkipLog()


def test_of_two_links_the_first_name_counts(tmp_path):
    """The name decides the split, so it must not depend on the order in which a disk lists a folder."""
    write(tmp_path / "far", a="a")
    (tmp_path / "t").mkdir()
    for link in "cab":
        (tmp_path / "t" / link).symlink_to(tmp_path / "far")
    documents = [r.name for r in TextSource([str(tmp_path / "t")]).records() if isinstance(r, Document)]
    assert documents == ["a/a.txt"]


def test_a_folder_of_unknown_files_names_one(tmp_path):
    (tmp_path / "letter.docx").write_text("text")
    with pytest.raises(UserError, match=r"no file of a known type there \(left out: letter\.docx, unknown file type\)"):
        TextSource([str(tmp_path)])


def test_a_loop_of_links_ends(tmp_path):
    write(tmp_path / "t" / "sub", a="a").joinpath("up").symlink_to(tmp_path / "t")
    (tmp_path / "t" / "self").symlink_to("self")
    found, log = read(tmp_path / "t")
    assert found == ["a"]
    assert log.counts == {"reached under another name already": 1, "dangling link": 1}
    assert log.first == {"reached under another name already": "sub/up", "dangling link": "self"}


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_under_two_names_is_used_once(tmp_path, link):
    write(tmp_path / "t", z="z")
    link(tmp_path / "t" / "z.txt", tmp_path / "t" / "a.txt")
    found, log = read(tmp_path / "t")
    assert found == ["z"]
    assert log.counts == {"reached under another name already": 1}
    if link is os.symlink:
        documents = [r for r in TextSource([str(tmp_path / "t")]).records() if isinstance(r, Document)]
        assert [d.name for d in documents] == ["z.txt"], "the name that is no link decides the split"


def test_what_is_given_twice_is_used_once(tmp_path):
    write(tmp_path / "t", x="x", y="y")
    (tmp_path / "again").symlink_to(tmp_path / "t")
    for second in (tmp_path / "t" / "x.txt", tmp_path / "t", tmp_path / "again", tmp_path / "t" / ".." / "t"):
        for order in ([tmp_path / "t", second], [second, tmp_path / "t"]):
            found, log = read(*order)
            assert sorted(found) == ["x", "y"]
            assert log.counts == {"reached under another name already": 1}


@pytest.mark.fault("F24")
def test_unreadable_folders_and_files_are_counted(tmp_path, monkeypatch):
    write(tmp_path / "t" / "locked", a="locked")
    write(tmp_path / "t", good="good", shut="shut")
    scandir, opened = os.scandir, type(tmp_path).open

    def refusing_scandir(path="."):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    def refusing_open(path, *arguments, **options):
        if path.name == "shut.txt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "scandir", refusing_scandir)
    monkeypatch.setattr(type(tmp_path), "open", refusing_open)
    assert len(TextSource([str(tmp_path / "t")]).describe()["files_sha256"]) == 64
    found, log = read(tmp_path / "t")
    assert found == ["good"]
    assert log.counts == {"unreadable folder": 1, "unreadable file": 1}
    assert log.first == {"unreadable folder": "locked", "unreadable file": "shut.txt"}


@pytest.mark.fault("F42")
def test_dangling_links_and_pipes_do_not_stop_it(tmp_path, capsys):
    folder = write(tmp_path / "t", a="one text of a few words\n" * 20, b="another text of words\n" * 20)
    (folder / "gone.txt").symlink_to(tmp_path / "absent")
    os.mkfifo(folder / "pipe.txt")
    assert main(["prepare", "--text", str(folder), "--out", str(tmp_path / "o"), "--vocab-size", "290"]) == 0
    assert load_manifest(tmp_path / "o").skipped == {"dangling link": 1, "not a regular file": 1}
    printed = capsys.readouterr().out
    assert "left out: 1 x dangling link (first: gone.txt)" in printed
    assert "left out: 1 x not a regular file (first: pipe.txt)" in printed
    with pytest.raises(UserError, match=r"pipe\.txt: neither a file nor a folder"):
        TextSource([str(folder / "pipe.txt")])


@pytest.mark.fault("F24")
@pytest.mark.parametrize("name", [b"caf\xe9.docx", b"caf\xe9.jsonl", b"caf\xe9.parquet", b"caf\xe9.txt"])
@pytest.mark.parametrize("option", ["--text", "--hf"])
def test_names_that_are_no_utf8(tmp_path, capsys, name, option):
    folder = write(tmp_path / "t", a="one text of a few words\n" * 20, b="another text of words\n" * 20)
    with open(os.fsencode(folder) + b"/" + name, "wb") as file:
        file.write(b'{"text": 5}\n' if name.endswith(b"jsonl") else b"\xff")
    assert main(["prepare", option, str(folder), "--out", str(tmp_path / "o"), "--vocab-size", "290"]) == 0
    assert "(first: caf\\udce9." in capsys.readouterr().out
    assert any("caf\\udce9." in first for first in load_manifest(tmp_path / "o").skipped_first.values())


@pytest.mark.parametrize("option", ["--text", "--hf"])
def test_an_edit_of_equal_length_is_another_text(tmp_path, capsys, option):
    folder = write(tmp_path / "t", a="one text of a few words\n" * 20, b="another text of words\n" * 20)
    command = ["prepare", option, str(folder), "--out", str(tmp_path / "o"), "--vocab-size", "290"]
    assert main(command) == 0
    path = folder / "a.txt"
    before = path.stat()
    path.write_text(path.read_text().replace("few", "FEW"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert main(command) == 2
    assert "holds a corpus made otherwise" in capsys.readouterr().err
    path.write_text(path.read_text().replace("FEW", "few"))
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_an_option_given_twice_adds_up(tmp_path):
    a, b = write(tmp_path / "a", x="one text of a few words\n" * 20), write(tmp_path / "b", y="other words\n" * 40)
    command = ["prepare", "--text", str(a), "--text", str(b), "--out", str(tmp_path / "o"), "--vocab-size", "280"]
    assert main(command) == 0
    manifest = load_manifest(tmp_path / "o")
    assert manifest.source["files"] == 2
    assert manifest.train.bytes + manifest.val.bytes == 20 * 24 + 40 * 12


def test_a_second_data_set_is_not_silently_the_only_one(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "--hf", "one", "--hf", "two", "--out", str(tmp_path / "o")])
    assert "--hf: given twice" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["kernels", "optimizers"])
def test_choices_given_twice_add_up_in_bench(what):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert parser.parse_args([what, "--dtype", "fp32", "--dtype", "bf16"]).dtype == ["fp32", "bf16"]


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n".format("0" * 64)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "jsonl.gz", "parquet", "json.zst", "csv"])
def test_a_git_lfs_pointer_is_named(tmp_path, suffix):
    write(tmp_path, good="good").joinpath(f"big.{suffix}").write_text(LFS)
    found, log = read(tmp_path)
    assert found == ["good"]
    assert log.counts == {"Git LFS pointer instead of the file (git lfs pull fetches it)": 1}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array(tmp_path, kind, packed, indent):
    values = [f"document {i} ü, [with] brackets" for i in range(3000)]
    raw = json.dumps([{"n": i, "text": value} for i, value in enumerate(values)], indent=indent).encode()
    path = tmp_path / f"a.{kind}{packed}"
    path.write_bytes(gzip.compress(raw) if packed else b"\xef\xbb\xbf" + raw)
    assert read(path) == (values, SkipLog())


@pytest.mark.fault("F24")
def test_a_json_array_keeps_what_is_whole(tmp_path):
    rows = b'[{"text": "a"}, {"other": 1}, {"text": "\xff"}, 5, {"text": "b"}, {"text": "cut'
    (tmp_path / "a.json").write_bytes(rows)
    found, log = read(tmp_path)
    assert found == ["a", "b"]
    assert log.counts == {"no text under the key": 2, "invalid UTF-8": 1, "broken JSON": 1}
    (tmp_path / "a.json").write_bytes(b"[" * 200_000)
    assert read(tmp_path)[1].counts == {"broken JSON": 1}


def test_values_over_several_lines(tmp_path):
    (tmp_path / "a.json").write_text("".join(json.dumps({"text": t}, indent=1) + "\n" for t in "abc"))
    assert read(tmp_path) == (["a", "b", "c"], SkipLog())


def test_csv_rows_stay_as_they_are(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbfid,text\r\n1,2021-01-05\r\n2,"two\r\nlines, ""ok"""\r\n3\r\n4,\xff\r\n'
    )
    (tmp_path / "b.tsv").write_text("text\tid\n007\t1\nNULL\t2\n")
    found, log = read(tmp_path)
    assert found == ["2021-01-05", 'two\r\nlines, "ok"', "007", "NULL"]
    assert log.counts == {"no text under the key": 1, "invalid UTF-8": 1}


def test_carriage_returns_end_lines(tmp_path):
    values = [f"document {i} " + "x" * 1000 for i in range(12_000)]
    (tmp_path / "a.jsonl").write_bytes(b"\r".join(json.dumps({"text": value}).encode() for value in values))
    assert read(tmp_path / "a.jsonl") == (values, SkipLog())
    text = "\r".join(values)
    (tmp_path / "b.txt").write_bytes(text.encode())
    found, log = read(tmp_path / "b.txt")
    assert ("".join(found), log) == (text, SkipLog())
    assert len(found) > 100
    assert all(part.endswith("\r") for part in found[:-1])


@pytest.mark.fault("F24")
def test_a_long_line_between_carriage_returns_costs_only_itself(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"before\r" + b"x" * 12_000_000 + b"\rafter\r" + b"y" * 12_000_000)
    found, log = read(tmp_path)
    assert found == ["before\rafter\r"]
    assert log.counts == {"line over 10 MB": 2}


def test_a_missing_key_lists_the_keys(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "content": "x"}\n')
    table = pyarrow.table({"body": ["x"], "title": ["y"]})
    (tmp_path / "p").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "p" / "b.parquet")
    for path, keys in [(tmp_path / "a.jsonl", "id, content"), (tmp_path / "p", "body, title")]:
        for option in ("--text", "--hf") if path.is_dir() else ("--text",):
            assert main(["prepare", option, str(path), "--out", str(tmp_path / "o")]) == 2
            error = capsys.readouterr().err
            assert keys in error
            assert "--text-key" in error
    assert "where n is of type int" in read_log(tmp_path, '{"n": 5}', "n")


def read_log(folder, line, key) -> str:
    (folder / "one.jsonl").write_text(line)
    return str(read(folder / "one.jsonl", key=key)[1])


@pytest.mark.fault("F42")
def test_a_parquet_string_that_is_no_utf8_costs_only_itself(tmp_path):
    raw = pyarrow.array([b"a", b"\xff", b"c"], pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    found, log = read(tmp_path)
    assert found == ["a", "c"]
    assert log.counts == {"invalid UTF-8": 1}


def test_stand_ins_for_a_tokenizer_are_named(tmp_path):
    for content, said in [
        (LFS, "a Git LFS pointer instead of the file"),
        ("IQ== 0\nIg== 1\n", "a tiktoken file, which SentencePiece cannot read"),
        ('{"version": "1.0"}', "a JSON file"),
    ]:
        (tmp_path / "tokenizer.model").write_text(content)
        with pytest.raises(UserError, match=rf"tokenizer\.model: not a SentencePiece model but {said}"):
            SentencePieceTokenizer(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("name", ["manifest.json", "train-00000.bin", "val.index.bin"])
def test_a_pointer_in_a_prepared_corpus_is_named(prepared, name):
    (prepared / name).write_text(LFS)
    with pytest.raises(UserError, match=rf"{name}: Git LFS pointer instead of the file"):
        load_manifest(prepared)


@pytest.mark.parametrize("option", ["--text", "--hf"])
def test_hidden_files_and_folders_are_left_out_and_counted(tmp_path, capsys, option):
    folder = write(tmp_path / "t", a="one text of a few words\n" * 20, b="another text of words\n" * 20)
    for hidden in (".git", "sub/.ipynb_checkpoints"):
        write(folder / hidden, a="hidden words\n" * 20)
    (folder / "sub" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / ".link.txt").symlink_to(folder / "a.txt")
    command = ["prepare", option, str(folder), "--out", str(tmp_path / "o"), "--vocab-size", "290"]
    assert main(command) == 0
    manifest = load_manifest(tmp_path / "o")
    assert manifest.skipped == {"hidden file or folder": 4}
    assert manifest.train.bytes + manifest.val.bytes == 20 * 24 + 20 * 22
    assert "left out: 4 x hidden file or folder (first: .git)" in capsys.readouterr().out
    (folder / ".DS_Store").write_bytes(b"more")
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert read(folder / ".git")[0] == ["hidden words\n" * 20], "named by the user, it is no accident"


def test_the_package_brings_what_opens_zst():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(name.startswith("zstandard") for name in project["dependencies"])
