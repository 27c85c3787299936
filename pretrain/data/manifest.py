"""The manifest of a prepared corpus: what the folder holds, written last, so that its presence means completeness."""

import hashlib
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from model.errors import UserError
from model.lfs import refuse_pointer
from model.schema import Frozen, expected
from pretrain.machine.files import read_regular

MANIFEST = "manifest.json"
SPLITS = ("train", "val")
PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}$"
AGAIN = "run sparlow prepare again"


class FileEntry(Frozen):
    """One file of tokens or of document starts."""

    name: str = Field(pattern=PLAIN_NAME)
    bytes: int = Field(ge=1)
    sha256: str
    tokens: int = Field(ge=0)
    """Tokens in the file; 0 for an index."""


class SplitEntry(Frozen):
    """The training or the held-out part."""

    documents: int = Field(ge=1)
    tokens: int = Field(ge=1)
    bytes: int | None = Field(ge=1)
    """UTF-8 bytes of the documents' text; None where nobody knows them, as of ids that came without a text."""
    files: tuple[FileEntry, ...]
    """Token shards in order: little-endian integers of the manifest's dtype."""
    index: FileEntry
    """Little-endian uint64: the first token of each document, then the number of tokens."""
    text_bytes: FileEntry | None = None
    """Little-endian uint64: UTF-8 bytes of each document's text. None in a folder of an earlier version."""

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        """Everything of the split that lies in the folder."""
        return (*self.files, self.index, *([self.text_bytes] if self.text_bytes else []))


class TokenizerEntry(Frozen):
    """The tokenizer beside the shards."""

    file: str = Field(pattern=PLAIN_NAME)
    sha256: str
    vocab_size: int = Field(ge=1)
    bos: int | None
    eos: int | None
    pad: int | None


class Manifest(Frozen):
    """All that is known about a prepared corpus; equal inputs give equal bytes, so no dates and no paths."""

    format: Literal["sparlow-tokens"]
    format_version: Literal[1, 2]
    """1 with a SentencePiece model; 2, which earlier versions cannot read, with another tokenizer or none."""
    source: dict[str, Any]
    options: dict[str, Any]
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerEntry | None
    """None where the ids came without their tokenizer."""
    train: SplitEntry
    val: SplitEntry
    skipped: dict[str, int]
    """Documents left out, by reason."""
    skipped_first: dict[str, str]
    """The first document of each reason."""
    vocab_size: int | None = Field(default=None, ge=1)
    """Number of ids where there is no tokenizer."""

    @property
    def ids(self) -> int:
        """Number of ids: the tokenizer's, or `vocab_size` where there is none."""
        return (self.tokenizer.vocab_size if self.tokenizer else self.vocab_size) or 0

    def split(self, name: str) -> SplitEntry:
        return getattr(self, name)

    @property
    def token_dtype(self) -> np.dtype:
        return np.dtype(self.dtype).newbyteorder("<")

    def to_json(self) -> str:
        # Without the field where it says nothing, as earlier versions wrote it: a corpus keeps its fingerprint.
        return self.model_dump_json(indent=2, exclude={"vocab_size"} if self.vocab_size is None else None)

    @property
    def all_files(self) -> list[FileEntry]:
        """The data files of both splits."""
        return [entry for split in SPLITS for entry in self.split(split).all_files]


def read_manifest(folder: str | PathLike[str]) -> Manifest:
    """The manifest of a folder, by itself; `UserError` when it is missing or makes no sense."""
    path = Path(folder) / MANIFEST
    try:
        manifest = Manifest.model_validate_json(read_regular(path))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no prepared corpus there (no {MANIFEST}); run sparlow prepare --out {folder}"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
    except ValidationError as error:
        refuse_pointer(path)
        wrong = error.errors()[0]
        place = "".join(c for c in ".".join(map(str, wrong["loc"])) if c.isprintable()) or "the file"
        raise UserError(
            f"{path}: not a manifest of a prepared corpus ({place:.100}: {expected(wrong):.300}); {AGAIN}"
        ) from error
    _require_consistent(manifest, path)
    return manifest


def load_manifest(folder: str | PathLike[str]) -> Manifest:
    """The manifest of a folder whose files all have the size it states; `UserError` names the first that has not."""
    manifest = read_manifest(folder)
    for entry in manifest.all_files:
        path = Path(folder) / entry.name
        if not path.is_file():
            raise UserError(f"{path}: missing; {AGAIN}")
        if (found := path.stat().st_size) != entry.bytes:
            refuse_pointer(path)
            raise UserError(f"{path}: {found} bytes where the manifest says {entry.bytes}; {AGAIN}")
    return manifest


def fingerprint(folder: str | PathLike[str]) -> str:
    """What stands for a corpus in a checkpoint: the SHA-256 of its manifest; OSError where there is none."""
    return hashlib.sha256(read_regular(Path(folder) / MANIFEST)).hexdigest()


def fingerprint_of(fingerprints: dict[str, str]) -> str:
    """What stands for the corpora of a mixture in a checkpoint: their names and own fingerprints."""
    return ", ".join(f"{name} {fingerprints[name]}" for name in sorted(fingerprints))


def _require_consistent(manifest: Manifest, path: Path) -> None:
    tokenizer = manifest.tokenizer
    if (tokenizer is None) == (manifest.vocab_size is None):
        raise UserError(f"{path}: has to say either tokenizer or vocab_size; {AGAIN}")
    names = [entry.name for entry in manifest.all_files] + ([tokenizer.file] if tokenizer else [])
    if len({*names, MANIFEST}) != len(names) + 1:
        raise UserError(f"{path}: names one file twice; {AGAIN}")
    width = manifest.token_dtype.itemsize
    for split in SPLITS:
        entry = manifest.split(split)
        fits = sum(file.tokens for file in entry.files) == entry.tokens
        fits &= all(file.bytes == file.tokens * width for file in entry.files)
        fits &= entry.text_bytes is None or entry.text_bytes.bytes == 8 * entry.documents
        if not fits or entry.index.bytes != 8 * (entry.documents + 1):
            raise UserError(f"{path}: the figures of split {split} contradict each other; {AGAIN}")
