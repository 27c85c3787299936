"""How far a `prepare` has come that may be killed: enough to go on with the next document.

It is written whenever a shard is finished, into the folder that is filled aside, and taken away before the corpus is.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from model.schema import Frozen
from pretrain.data.manifest import PLAIN_NAME, FileEntry
from pretrain.machine.files import read_regular, sync_folder, write_synced

UNFINISHED = "unfinished.json"


class OpenFile(Frozen):
    """A file that grows: what stood in it when this was written, which a later kill leaves as its beginning."""

    name: str = Field(pattern=PLAIN_NAME)
    bytes: int = Field(ge=0)
    sha256: str


class SplitSoFar(Frozen):
    """One split, up to the end of a batch of documents."""

    documents: int
    tokens: int
    bytes: int
    """UTF-8 bytes of the documents' text."""
    files: tuple[FileEntry, ...]
    """Finished shards."""
    blocks: tuple[tuple[str, str], ...]
    """Digests of their blocks, by name."""
    index: OpenFile
    text_bytes: OpenFile
    shard: OpenFile | None
    """The shard that is being filled; None where the last one has just been finished."""


class Skips(Frozen):
    """A `SkipLog`, as it is written."""

    counts: dict[str, int]
    first: dict[str, str]


class Unfinished(Frozen):
    """The content of UNFINISHED."""

    format: Literal["sparlow-unfinished"]
    format_version: Literal[1]
    made_of: dict[str, Any]
    """Source and options, as the manifest will have them."""
    bound: float
    by_position: bool
    total: int | None
    """Bytes of all text, where they are known."""
    kept: dict[str, str]
    """sha256 of the tokenizer's files, by name."""
    records: int = 0
    """Records of the source that all files have been made of."""
    unread: Skips = Skips(counts={}, first={})
    """Documents left out when they were read."""
    unencoded: Skips = Skips(counts={}, first={})
    """Documents left out since they have no tokens."""
    splits: dict[str, SplitSoFar] = Field(default_factory=dict)

    @property
    def shards(self) -> int:
        """Finished ones."""
        return sum(len(split.files) for split in self.splits.values())

    @property
    def bytes(self) -> int:
        """Bytes of text that are done."""
        return sum(split.bytes for split in self.splits.values())

    def write(self, folder: Path) -> None:
        """Put it into `folder`, where the files that it speaks of are on the disk already."""
        temporary = folder / f"{UNFINISHED}.tmp"
        write_synced(temporary, self.model_dump_json(indent=1).encode())
        os.replace(temporary, folder / UNFINISHED)
        sync_folder(folder)


def finished_shards(folder: Path) -> int:
    """How many finished shards a killed run has left in `folder`, which the next one need not do again."""
    found = _read(folder)
    return found.shards if found else 0


def take_up(folder: Path, made_of: Mapping[str, Any]) -> Unfinished | None:
    """What a killed run of the same source and options has left in `folder`, if all of it is as it was written.

    Else None, and the folder is empty.
    """
    found = _read(folder)
    if found is not None and found.made_of == made_of and _is_sound(folder, found):
        return found
    shutil.rmtree(folder)
    folder.mkdir()
    return None


def _read(folder: Path) -> Unfinished | None:
    try:
        return Unfinished.model_validate_json(read_regular(folder / UNFINISHED))
    except (OSError, ValueError):  # ValueError: what is no such JSON; NUL in a path
        return None


def _is_sound(folder: Path, found: Unfinished) -> bool:
    try:
        for split in found.splits.values():
            if any((folder / entry.name).stat().st_size != entry.bytes for entry in split.files):
                return False
            for entry in (split.index, split.text_bytes, split.shard):
                if entry is not None and _sha256(folder / entry.name, entry.bytes) != entry.sha256:
                    return False
        return all(_sha256(folder / name, None) == sha256 for name, sha256 in found.kept.items())
    except OSError:
        return False


def _sha256(path: Path, size: int | None) -> str:
    """Hash of the first `size` bytes of a file, or of all."""
    digest, left = hashlib.sha256(), path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left and (data := file.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()
