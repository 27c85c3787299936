"""Which form of tokenised corpus a path is, told by what lies there."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from pretrain.data.tokenised.flat import Dtype, FlatFile, Marks
from pretrain.data.tokenised.megatron import MegatronPair
from pretrain.data.tokenised.piece import Split, TokenFile
from pretrain.data.tokenised.saved import is_saved, open_saved

WORDS: dict[str, Split] = {"train": "train", "training": "train"}
WORDS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")


@dataclass(frozen=True)
class Reading:
    """How to read what does not say it itself; None where the user says nothing."""

    dtype: Dtype | None = None
    document_begin: int | None = None
    document_end: int | None = None
    token_key: str | None = None
    """Column of a data set; None means input_ids."""


def open_files(path: Path, reading: Reading) -> tuple[list[TokenFile], list[str]]:
    """All files of ids that `path` names, in the order of their names, and what is left out, in words.

    A folder that `save_to_disk` wrote; a file or a folder of files .bin, with .idx beside them where they are
    Megatron's, which may also be named by what both names begin with. The name of a file says which split it is;
    those of a test split are left out.
    UserError for anything else, and for an option that has no effect on it.
    """
    if path.is_dir() and is_saved(path):
        _refuse(reading, ("dtype", "document_begin", "document_end"), f"{path}, whose rows are documents of ids")
        saved, others = open_saved(path, reading.token_key or "input_ids")
        return _with_both_splits(saved), [f"split {name}" for name in others]
    _refuse(reading, ("token_key",), f"{path}, which is no folder of datasets.save_to_disk")
    found = _found(path)
    tests = [one for one in found if len(found) > 1 and not {"test", "testing"}.isdisjoint(_words(one))]
    files = [_open(one, path, reading) for one in found if one not in tests]
    if not files:
        raise UserError(
            f"--tokens {path}: no file of ids there; known are .bin files (nanoGPT, llm.c), pairs .bin and .idx "
            "(Megatron-LM) and folders of datasets.save_to_disk"
        )
    if len({file.form for file in files}) > 1:
        raise UserError(f"--tokens {path}: holds files of several forms; prepare each by itself")
    return _with_both_splits(files), [one.name for one in tests]


def _with_both_splits(files: Sequence[TokenFile]) -> list[TokenFile]:
    """The files, those that say nothing of a split to be trained on; none says anything unless some are held out."""
    splits = {file.split for file in files}
    for file in files:
        file.split = (file.split or "train") if "val" in splits and splits != {"val"} else None
    return list(files)


def _found(path: Path) -> list[Path]:
    """Indices of Megatron's and flat files."""
    if path.is_dir():
        indices = sorted(path.glob("*.idx"))
        return indices or sorted(path.glob("*.bin"))
    pair = path.with_name(f"{path.name}.idx")
    if pair.is_file():
        return [pair]
    if not path.exists():
        raise UserError(f"--tokens {path}: nothing there")
    if path.with_suffix(".idx").is_file():
        return [path.with_suffix(".idx")]
    return [path] if path.is_file() and path.suffix == ".bin" else []


def _open(found: Path, given: Path, reading: Reading) -> TokenFile:
    split = next((WORDS[word] for word in _words(found) if word in WORDS), None)
    if found.suffix == ".idx":
        _refuse(reading, ("dtype", "document_begin", "document_end"), f"{given}, whose .idx says it")
        return MegatronPair(found, found.stem, split)
    return FlatFile(found, found.name, split, reading.dtype, Marks(reading.document_begin, reading.document_end))


def _words(path: Path) -> list[str]:
    return re.split(r"[^a-z]+", path.stem.lower())


def _refuse(reading: Reading, names: tuple[str, ...], what: str) -> None:
    for name in names:
        if getattr(reading, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: has no effect on {what}; leave it out")
