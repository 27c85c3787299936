"""Configurations from strangers and slips of a hand: one sentence with the key, and no folder is made."""

import os

import pytest
from support import train_here

from model.errors import UserError
from pretrain.cli import main
from pretrain.config import load_config

pytestmark = [pytest.mark.fault("F10"), pytest.mark.fault("F45")]

FILES = {
    "lists in lists": (b"[model]\ndim = " + b"[" * 100_000, "nested too deeply"),
    "tables in tables": (b"[model]\ndim = " + b"{a = " * 50_000, "nested too deeply"),
    "a path of keys": (b"model" + b".a" * 5_000 + b" = 1", r"model\.a: lists or tables are nested more than 8 deep"),
    "closed lists": (b"[eval]\nprompts = " + b"[" * 50 + b"]" * 50, r"eval\.prompts: lists or tables are nested more"),
    "thousands of digits": (b"[model]\n\ndim = " + b"1" * 5000, r"a number of thousands of digits \(at line 3\)"),
    "thousands of hexadecimal digits": (b"[model]\ndim = 0x" + b"f" * 5000, r"model\.dim: a number of 20000 bits"),
    "more than 64 bits": (b"[run]\nseed = " + str(2**70).encode(), r"run\.seed: a number of 71 bits"),
    "a list for a name": (b"[optimizer]\nname = [1]", r"optimizer\.name: unknown name"),
    "a table for a name": (b"[linear]\nname = {}", r"linear\.name"),
    "layers without end": (
        b"[model]\nn_layers = 4611686018427387904",
        r"model\.n_layers: .* at most",
    ),
    "a long key": (b"[model]\n" + b"k" * 900_000 + b" = 1", r"^k+… \(900,000 characters\): is no key of \[model\]"),
    "a long table": (b"[" + b"k" * 900_000 + b"]\na = 1", "is no table"),
    "a long text": (b'[run]\ndir = "' + b"x" * 900_000 + b'"', r"run\.dir: a text of 900,000 characters"),
    "a long path": (b'[run]\ndir = "' + b"x" * 300 + b'"', r"run\.dir: x+… \(300 characters\) is longer than a path"),
    "a deep path": (b'[data]\npath = "' + b"x/" * 3000 + b'"', r"data\.path: .* is longer than a path can be"),
    "NUL in a path": (b'[run]\ndir = "a\\u0000b"', r"run\.dir: .* has a NUL character"),
    "NUL in a key": (b'[model]\n"a\\u0000" = 1', r"a\\x00: is no key"),
    "a long list": (b"[eval]\nprompts = [" + b"'a'," * 20_000 + b"]", r"eval\.prompts: a list of 20,000 items"),
    "no number": (b"[optimizer]\nlr = nan", r"optimizer\.lr: expected a finite number"),
    "infinity": (b"[train]\ngrad_clip = inf", r"train\.grad_clip: expected a finite number"),
    "no date": (b"[model]\ndim = 2021-13-45", "not valid TOML"),
    "no text": (b"\xff\xfe[\0m\0", "cannot be read as text"),
    "larger than 1 MB": (b"# " + b"x" * 1_000_000, "larger than 1 MB"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_is_one_sentence(tmp_path, what, monkeypatch):
    content, said = FILES[what]
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        train_here(tmp_path / "c.toml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


OVERRIDES = {
    "--model.dim=" + "[" * 5000: r"model\.dim: \[+… \(5,000 characters\) is no TOML value: .*nested too deeply",
    "--model.dim=" + "1" * 5000: r"model\.dim: 1+….*thousands of digits",
    "--model.dim=0x" + "f" * 5000: r"model\.dim: a number of 20000 bits",
    "--model.dim=1\n[run]\nseed=2": r"model\.dim: .* is not one TOML value",
    "--optimizer.name=[1]": r"optimizer\.name: unknown name",
    "--optimizer.name=" + "x" * 100_000: r"optimizer\.name: unknown name",
    "--run.dir=a\0b": r"run\.dir: .* has a NUL character",
    "--run.dir=\udcff": r"run\.dir: .* is no text in UTF-8",
    "--run.dir=" + "x" * 300: r"run\.dir: .* longer than a path",
    "--run.dir=": r"run\.dir: expected text of at least 1",
    "--\udcff.b=1": r"\\udcff: is no table",
    "--model." + "k" * 3000 + "=1": r"k+… \(3,000 characters\): is no key",
    "--model.dim.x=1": r"model\.dim\.x: unknown key",
    "--model.=1": r"expected --section\.key=value",
    "--.dim=1": r"^: unknown table|expected|is no",
    "--growth.layers=" + '"' + "z" * 90_000 + '"': r"growth\.layers: .* does not say the layers",
    "--optimizer.lr=1e999": r"optimizer\.lr: expected a finite number",
    "--model.n_layers=-9223372036854775809": r"model\.n_layers",
}


@pytest.mark.parametrize("argument", OVERRIDES, ids=lambda argument: ascii(argument[:20]))
def test_an_override_is_one_sentence(argument):
    with pytest.raises(UserError, match=OVERRIDES[argument]) as caught:
        load_config(None, [argument])
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/tty0", ".", "absent.toml", "a\0b", "x" * 300, "\udcff", "/", ""])
def test_what_is_no_file_is_one_sentence(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", path]) == 2
    assert capsys.readouterr().err.startswith("sparlow train: ")
    assert not list(tmp_path.iterdir())


def test_a_pipe_nobody_writes_to_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "c.toml")
    with pytest.raises(UserError, match=r"c\.toml: cannot be read as text \(it is no file but a pipe or a device\)"):
        load_config(tmp_path / "c.toml")


def test_a_pipe_of_the_shell_is_read():
    """As in `sparlow train <(sed s/old/new/ config.toml)`."""
    read, written = os.pipe()
    os.write(written, b"[model]\ndim = 64\n")
    os.close(written)
    assert load_config(f"/dev/fd/{read}").model.dim == 64
    os.close(read)
