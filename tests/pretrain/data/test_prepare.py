"""`sparlow prepare` as a whole: equal bytes, idempotent, safe to kill, one sentence for every mistake."""

import errno
import fcntl
import filecmp
import hashlib
import io
import json
import os
import shutil
import signal

import pytest
import sentencepiece
from processes import run_command, start_command

from pretrain.cli import main
from pretrain.data.dataset import TokenDataset
from pretrain.data.documents import score
from pretrain.data.manifest import load_manifest
from pretrain.data.shards import HashedFile
from pretrain.data.tokenizer import SentencePieceTokenizer
from pretrain.data.verify import verify


def command(texts, out, *more) -> list[str]:
    return ["prepare", "--text", str(texts), "--out", str(out), "--vocab-size", "320", *more]


def equal_folders(a, b) -> bool:
    names = sorted(path.name for path in a.iterdir())
    return (
        names == sorted(path.name for path in b.iterdir()) and filecmp.cmpfiles(a, b, names, shallow=False)[0] == names
    )


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_equal_inputs_in_different_folders_give_equal_bytes(texts, tmp_path):
    shutil.copytree(texts, tmp_path / "elsewhere" / "texts")
    assert main(command(texts, tmp_path / "a")) == 0
    assert main(command(tmp_path / "elsewhere" / "texts", tmp_path / "deep" / "b")) == 0
    assert equal_folders(tmp_path / "a", tmp_path / "deep" / "b")
    everything = b"".join(path.read_bytes() for path in (tmp_path / "a").iterdir())
    assert str(tmp_path).encode() not in everything
    assert b"elsewhere" not in everything


def test_what_the_manifest_says(texts, salad, tmp_path, capsys):
    assert main(command(texts, tmp_path / "a", "--json")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert shown["train"]["documents"] + shown["val"]["documents"] == len(salad)
    assert shown["train"]["bytes"] + shown["val"]["bytes"] == sum(map(len, salad))
    tokenizer = SentencePieceTokenizer(tmp_path / "a" / "tokenizer.model")
    assert shown["train"]["tokens"] + shown["val"]["tokens"] == sum(len(tokenizer.encode(t)) + 2 for t in salad)
    assert shown["tokenizer"]["sha256"] == tokenizer.sha256
    verify(tmp_path / "a")


def test_a_second_run_does_nothing_and_another_one_is_refused(texts, tmp_path, capsys):
    out = tmp_path / "a"
    assert main(command(texts, out)) == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main(command(texts, out)) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert "--overwrite" in refused(capsys, *command(texts, out, "--val-fraction", "0.2"))
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main(command(texts, out, "--val-fraction", "0.2", "--overwrite")) == 0
    assert load_manifest(out).options["val_fraction"] == 0.2


def test_a_damaged_corpus_is_made_anew(texts, tmp_path):
    assert main(command(texts, tmp_path / "a")) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "val-00000.bin").write_bytes(b"cut")
    assert main(command(texts, tmp_path / "b")) == 0
    assert equal_folders(tmp_path / "a", tmp_path / "b")


def test_a_foreign_manifest_is_left_alone(texts, tmp_path, capsys):
    (tmp_path / "manifest.json").write_text('{"of": "something else"}')
    assert "another kind" in refused(capsys, *command(texts, tmp_path))
    (tmp_path / "manifest.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS pointer" in refused(capsys, *command(texts, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("fault", ["prepare_batch", "prepare_batch:2", "prepare_commit"])
def test_kill_and_run_again(fault, tmp_path):
    lines = "".join(f"number {hashlib.sha256(bytes([i % 256, i // 256])).hexdigest()}\n" for i in range(20_000))
    (tmp_path / "long.txt").write_text(lines)
    arguments = command(tmp_path / "long.txt", tmp_path / "a")
    status, _ = run_command(*arguments, fault=fault)
    assert status == -signal.SIGKILL
    assert list((tmp_path / "a").rglob("*.bin"))
    assert not (tmp_path / "a" / "manifest.json").exists()
    assert main(arguments) == 0
    assert main(command(tmp_path / "long.txt", tmp_path / "b")) == 0
    assert equal_folders(tmp_path / "a", tmp_path / "b")


def test_a_kill_while_replacing_a_corpus_leaves_no_manifest(texts, prepared):
    status, _ = run_command(*command(texts, prepared, "--val-fraction", "0.2", "--overwrite"), fault="prepare_commit")
    assert status == -signal.SIGKILL
    assert not (prepared / "manifest.json").exists()
    assert main(command(texts, prepared)) == 0
    verify(prepared)


def test_what_a_killed_run_left_is_not_taken_over(texts, prepared, tmp_path):
    (tmp_path / "a" / ".partial").mkdir(parents=True)
    (tmp_path / "a" / ".partial" / "train-00009.bin").write_bytes(b"old")
    assert main(command(texts, tmp_path / "a")) == 0
    assert equal_folders(tmp_path / "a", prepared)


def test_the_tokenizer_sees_no_held_out_text(texts, tmp_path):
    held_out = next(name for name in (f"x{i}.txt" for i in range(1000)) if score(name) < 0.05)
    shutil.copytree(texts, tmp_path / "texts")
    (tmp_path / "texts" / held_out).write_text("XYXYXYXY\n" * 1000)
    assert main(command(tmp_path / "texts", tmp_path / "a")) == 0
    assert b"XY" not in (tmp_path / "a" / "tokenizer.model").read_bytes()


def test_sigterm_leaves_nothing(tmp_path):
    process = start_command("prepare", "--out", str(tmp_path / "a"))
    lines = iter(process.stdout.readline, "")
    assert any("training a tokenizer" in line for line in lines)
    process.terminate()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert output.splitlines()[-1] == "sparlow prepare: stopped by SIGTERM; nothing was written"
    assert "Traceback" not in output
    assert not (tmp_path / "a").exists()


@pytest.mark.fault("F24")
def test_bad_documents_are_reported(texts, tmp_path, capsys):
    folder = tmp_path / "mixed"
    shutil.copytree(texts, folder)
    (folder / "latin.txt").write_bytes("größe".encode("latin-1"))
    (folder / "nul.txt").write_bytes(b"a\0b")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "wide.txt").write_bytes(b"x" * 12_000_000)
    (folder / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03")
    assert main(command(folder, tmp_path / "a")) == 0
    manifest = load_manifest(tmp_path / "a")
    assert manifest.skipped == dict.fromkeys(
        ["invalid UTF-8", "NUL byte", "empty", "line over 10 MB", "truncated file"], 1
    )
    assert manifest.skipped_first["invalid UTF-8"] == "latin.txt"
    assert manifest.train.documents + manifest.val.documents == 40
    assert "left out: 1 x NUL byte (first: nul.txt)" in capsys.readouterr().out


@pytest.mark.fault("F24")
def test_only_bad_documents(tmp_path, capsys):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.txt").write_bytes(b"\xff")
    message = refused(capsys, *command(tmp_path / "t", tmp_path / "a"))
    assert "no usable document" in message
    assert "1 invalid UTF-8 (first: a.txt)" in message
    assert not (tmp_path / "a").exists()


def test_given_tokenizer_and_max_tokens(texts, prepared, tmp_path):
    out, model = tmp_path / "a", prepared / "tokenizer.model"
    arguments = ["prepare", "--text", str(texts), "--out", str(out), "--tokenizer", str(model), "--max-tokens", "8000"]
    assert main(arguments) == 0
    manifest = load_manifest(out)
    assert (out / "tokenizer.model").read_bytes() == model.read_bytes()
    longest = 2600
    assert 7600 <= manifest.train.tokens < 7600 + longest
    assert 400 <= manifest.val.tokens < 400 + longest


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"normalization_rule_name": "nmt_nfkc"}, ["loses its newlines, tabs, runs of spaces, spaces at the end"]),
        (
            {"normalization_rule_name": "nmt_nfkc_cf"},
            ["loses its newlines", "export will refuse the model, since no tokenizer.json"],
        ),
        (
            {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True,
             "user_defined_symbols": "<a b>", "add_dummy_prefix": False},
            ["export will refuse the model, since its user-defined symbol '<a b>' contains a space"],
        ),
    ],
)  # fmt: skip
def test_what_a_given_tokenizer_cannot_do_is_said_first(settings, expected, texts, tmp_path, capsys):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words of an ordinary text"] * 50), model_writer=model, model_type="bpe",
        vocab_size=300, hard_vocab_limit=False, minloglevel=2, **settings,
    )  # fmt: skip
    (tmp_path / "t.model").write_bytes(model.getvalue())
    arguments = ["--out", str(tmp_path / "a"), "--tokenizer", str(tmp_path / "t.model"), "--max-tokens", "5000"]
    assert main(["prepare", "--text", str(texts), *arguments]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: --tokenizer")]
    assert len(warnings) == len(expected)
    assert all(part in line for part, line in zip(expected, warnings, strict=True))


def test_large_vocabulary_is_four_bytes_wide(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.data.prepare.LARGEST_UINT16_VOCAB", 300)
    assert main(command(texts, tmp_path / "a")) == 0
    assert load_manifest(tmp_path / "a").dtype == "uint32"
    data = TokenDataset(tmp_path / "a", "val", 64, "concat", 0)
    assert "\n" in SentencePieceTokenizer(data.tokenizer.path).decode(data.batch(0, 1).tokens[0].tolist())


def test_one_short_file(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("".join(f"line {i} of this one file\n" for i in range(500)))
    assert main(command(tmp_path / "a.txt", tmp_path / "a", "--vocab-size", "280")) == 0
    manifest = load_manifest(tmp_path / "a")
    assert (manifest.train.documents, manifest.val.documents) == (1, 1)
    assert manifest.train.bytes + manifest.val.bytes == (tmp_path / "a.txt").stat().st_size


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--vocab-size", "90000"], "--vocab-size 90000: too large for this text; the largest possible is"),
        (["--vocab-size", "-1"], "--vocab-size -1: must be positive"),
        (["--val-fraction", "1.5"], "--val-fraction 1.5: must lie between 0 and 1"),
        (["--val-fraction", "nan"], "--val-fraction nan: must lie between 0 and 1"),
        (["--max-tokens", "0"], "--max-tokens 0: must be at least 2"),
        (["--tokenizer", "absent.model"], "--vocab-size: has no effect beside --tokenizer"),
        (["--config", "en"], "have no effect without --hf"),
    ],
)
def test_mistakes(texts, tmp_path, capsys, more, message):
    assert message in refused(capsys, *command(texts, tmp_path / "a", *more))
    assert not (tmp_path / "a").exists()


def test_more_mistakes(texts, tmp_path, capsys):
    text = ["prepare", "--text", str(texts)]
    assert "--out: missing" in refused(capsys, *text)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"--out {out}: cannot be written" in refused(capsys, *text, "--out", str(out))
    assert "no such file" in refused(capsys, *command(tmp_path / "absent", tmp_path / "a"))
    (tmp_path / "none").mkdir()
    assert "no file of a known type" in refused(capsys, *command(tmp_path / "none", tmp_path / "a"))
    arguments = ["--out", str(tmp_path / "a"), "--tokenizer", str(tmp_path / "file")]
    assert "not a SentencePiece model" in refused(capsys, *text, *arguments)
    assert not (tmp_path / "a").exists()


def test_full_disk(texts, tmp_path, capsys, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HashedFile, "write", full)
    assert "No space left on device" in refused(capsys, *command(texts, tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_two_at_once(texts, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert "another prepare is writing there" in refused(capsys, *command(texts, tmp_path / "a"))
    os.close(descriptor)
    assert main(command(texts, tmp_path / "a")) == 0
