"""The manifest of a checkpoint: what it must hold, and whether it does."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from model.lfs import refuse_pointer
from model.linear.support import LAYOUTS

FORMAT_VERSION = 3


class BrokenCheckpoint(Exception):
    """A checkpoint that must not be used; the message names the file and the reason."""


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


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Say in a sentence (UserError) that a checkpoint's folder was removed while the body read it, or cannot be read.

    A run that trains on deletes its older checkpoints.
    """
    try:
        yield
    except Exception as error:
        if not folder.exists():
            raise UserError(
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
    try:
        data = json.loads((folder / "manifest.json").read_text())
        files = tuple(FileEntry(**entry) for entry in data.pop("files"))
        manifest = Manifest(**data, files=files)
        if not isinstance(manifest.support_layouts, dict) or not all(isinstance(f.name, str) for f in files):
            raise TypeError
    except FileNotFoundError:
        raise BrokenCheckpoint("manifest.json is missing") from None
    except OSError as error:
        raise UserError(f"{folder}: manifest.json cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        refuse_pointer(folder / "manifest.json")
        raise BrokenCheckpoint(f"manifest.json cannot be read ({type(error).__name__})") from None
    if manifest.format_version != FORMAT_VERSION:
        raise UserError(
            f"{folder}: written in checkpoint format {manifest.format_version}, this version reads {FORMAT_VERSION}; "
            "use the version that wrote it"
        )
    for support, layout in manifest.support_layouts.items():
        if LAYOUTS.get(support) != layout:
            raise UserError(
                f"{folder}: values of support {support!r} are in the order {layout!r}, this version reads "
                f"{LAYOUTS.get(support)!r}; use the version that wrote it"
            )
    names = [entry.name for entry in files]
    if len(set(names)) != len(names):
        raise BrokenCheckpoint("manifest.json lists a file twice")
    for entry in files:
        path = folder / entry.name
        if Path(entry.name).name != entry.name or path.is_symlink():
            raise BrokenCheckpoint(f"manifest.json names {entry.name!r}, which is not a plain file of the folder")
        if not path.is_file():
            raise BrokenCheckpoint(f"{entry.name} is missing")
        if path.stat().st_size != entry.bytes:
            refuse_pointer(path)
            raise BrokenCheckpoint(f"{entry.name} has {path.stat().st_size} bytes in place of {entry.bytes}")
    return manifest


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
