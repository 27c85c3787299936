"""The manifest of a checkpoint: what it must hold, and whether it does."""

import dataclasses
import errno
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.lfs import refuse_pointer
from model.linear.support import LAYOUTS
from model.strict_json import parse_object, read_plain

FORMAT_VERSION = 5

WITH_MODEL = 4
"""Written, so that earlier versions read it too, where the tokenizer is a SentencePiece model."""

WITHOUT_OWN_HASH = 3
"""The last format version whose manifest does not hash itself; it is still read."""

OWN_HASH = "manifest_sha256"

LARGEST = 16 * 2**20
"""Bytes of the largest manifest that is read: 100,000 files have less."""

COUNT = 2**62
"""No count in a checkpoint reaches this."""

_NAMED = rb'"' + OWN_HASH.encode() + rb'"'
_SEAL = re.compile(rb",\n " + _NAMED + rb': "([0-9a-f]{64})"\n}\n')


class BrokenCheckpoint(Exception):
    """A checkpoint that must not be used; the message names the file and the reason."""


class CheckpointRemoved(UserError):
    """A checkpoint that was deleted while it was read."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`."""

    format_version: int
    step: int
    tokens_seen: int
    config_hash: str
    data_fingerprint: str
    world_size: int
    support_layouts: dict[str, str]
    files: tuple[FileEntry, ...]

    def to_bytes(self) -> bytes:
        """The content of the file, which ends with the sha256 of all that stands before that."""
        return seal(dataclasses.asdict(self))


def seal(fields: dict[str, Any]) -> bytes:
    """`fields` as JSON with their own sha256 as the last one, so that a reader notices any bit that has changed."""
    body = json.dumps({key: value for key, value in fields.items() if key != OWN_HASH}, indent=1).removesuffix("\n}")
    own = hashlib.sha256(body.encode()).hexdigest()
    return f'{body},\n "{OWN_HASH}": "{own}"\n}}\n'.encode()


def _is_sealed(data: bytes) -> bool:
    """Whether `data` is what `seal` makes, to the last bit; BrokenCheckpoint where a part of that has changed."""
    start = data.rfind(b",\n " + _NAMED)
    found = _SEAL.fullmatch(data, start) if start >= 0 else None
    if found and hashlib.sha256(data[:start]).hexdigest().encode() == found[1]:
        return True
    if _NAMED in data:
        raise BrokenCheckpoint("manifest.json is damaged (its own sha256 differs)")
    return False


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Say in a sentence (UserError) that a checkpoint's folder was removed while the body read it, or cannot be read.

    A run that trains on deletes its older checkpoints: CheckpointRemoved.
    """
    try:
        yield
    except Exception as error:
        if not folder.exists():
            raise CheckpointRemoved(
                f"{folder} was removed while it was read, as a run does with all but its newest checkpoints "
                "(checkpoint.keep); give the command again, or name a checkpoint that stays"
            ) from None
        if isinstance(error, OSError):
            raise UserError(f"{folder}: cannot be read ({error})") from None
        raise


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of `folder`, with every name plain and every file present at its size; else BrokenCheckpoint.

    UserError for one that is whole but cannot be used: of another version, not readable by this user, or with Git LFS
    pointers in place of its files.
    """
    path = folder / "manifest.json"
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        data = read_plain(path, LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        raise BrokenCheckpoint("manifest.json is missing") from None
    except ValueError as error:
        raise BrokenCheckpoint(f"manifest.json cannot be read: {error}") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BrokenCheckpoint("manifest.json cannot be read: its folder is a link to itself") from None
        raise UserError(f"{folder}: manifest.json cannot be read ({error.strerror})") from None
    refuse_pointer(path)
    manifest = parse_manifest(data, folder)
    for entry in manifest.files:
        _require_file(folder, entry)
    return manifest


def parse_manifest(data: bytes, folder: Path) -> Manifest:
    """The manifest in `data`, as `read_manifest` but for the files that it names; `folder` is for sentences."""
    sealed = _is_sealed(data)
    try:
        fields = parse_object(data)
    except ValueError as error:
        raise BrokenCheckpoint(f"manifest.json cannot be read: {error}") from None
    if sealed:
        fields.pop(OWN_HASH)
    version = fields.get("format_version")
    if not (isinstance(version, int) and _is_count(version)) or sealed != (version > WITHOUT_OWN_HASH):
        raise BrokenCheckpoint("manifest.json is damaged (its own sha256 is missing)")
    if not WITHOUT_OWN_HASH <= version <= FORMAT_VERSION:
        raise UserError(
            f"{folder}: written in checkpoint format {version}, this version reads {WITHOUT_OWN_HASH} to "
            f"{FORMAT_VERSION}; use the version that wrote it"
        )
    manifest = _of_fields(fields)
    for support, layout in manifest.support_layouts.items():
        if LAYOUTS.get(support) != layout:
            raise UserError(
                f"{folder}: values of support {support!r} are in the order {layout!r}, this version reads "
                f"{LAYOUTS.get(support)!r}; use the version that wrote it"
            )
    names = [entry.name for entry in manifest.files]
    if len(set(names)) != len(names):
        raise BrokenCheckpoint("manifest.json lists a file twice")
    for name in names:
        if not is_plain(name) or name == "manifest.json":
            raise BrokenCheckpoint(f"manifest.json names {name[:99]!r}, which is not a plain file of the folder")
    return manifest


def is_plain(name: str) -> bool:
    """Whether `name` is that of an entry of a folder, and of no other place."""
    plain = name.isprintable() and Path(name).name == name and name not in ("", "..")
    return plain and len(name.encode("utf-8", "replace")) <= 255


def _of_fields(fields: dict[str, Any]) -> Manifest:
    """The manifest of these fields; BrokenCheckpoint unless each is there and of its type."""
    texts, counts = ("config_hash", "data_fingerprint"), ("step", "tokens_seen", "world_size")
    layouts, files = fields.get("support_layouts"), fields.pop("files", None)
    right = all(isinstance(fields.get(key), str) for key in texts) and all(_is_count(fields.get(key)) for key in counts)
    right = right and isinstance(layouts, dict) and all(isinstance(layout, str) for layout in layouts.values())
    right = right and isinstance(files, list) and all(_is_entry(entry) for entry in files)
    right = right and {*fields, "files"} == {field.name for field in dataclasses.fields(Manifest)}
    if not right:
        raise BrokenCheckpoint("manifest.json cannot be read: a field is missing, unknown or of another type")
    assert files is not None
    return Manifest(**fields, files=tuple(FileEntry(**entry) for entry in files))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < COUNT


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"name", "bytes", "sha256"}:
        return False
    return isinstance(entry["name"], str) and _is_count(entry["bytes"]) and isinstance(entry["sha256"], str)


def _require_file(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.name
    if path.is_symlink():
        raise BrokenCheckpoint(f"manifest.json names {entry.name!r}, which is not a plain file of the folder")
    if not path.is_file():
        raise BrokenCheckpoint(f"{entry.name} is missing")
    if (size := path.stat().st_size) != entry.bytes:
        refuse_pointer(path)
        raise BrokenCheckpoint(f"{entry.name} has {size} bytes in place of {entry.bytes}")


def verify_hashes(folder: Path, manifest: Manifest) -> None:
    """Read every file once; BrokenCheckpoint when one is not what was written."""
    for entry in manifest.files:
        if file_sha256(folder / entry.name) != entry.sha256:
            raise BrokenCheckpoint(f"{entry.name} is damaged (sha256 differs)")


def file_sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
