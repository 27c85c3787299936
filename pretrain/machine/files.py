"""Files that must be whole: synced to the disk, or put in the place of an older one at once."""

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Any

from pretrain.machine.fault import fault_flag, fault_point

CHUNK_BYTES = 2**20


def write_synced(path: Path, *parts: bytes | memoryview) -> str:
    """Write a file of `parts`, wait until its bytes are on the disk, and return their sha256."""
    if fault_flag("disk_full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for index, chunk in enumerate(_chunks(parts)):
            digest.update(chunk)
            file.write(chunk)
            if index == 0:
                fault_point("mid_file")
        sync_file(file)
    return digest.hexdigest()


def _chunks(parts: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """Pieces that a processor's cache holds from the hash to the write."""
    for part in parts:
        for start in range(0, len(part), CHUNK_BYTES):
            yield memoryview(part)[start : start + CHUNK_BYTES]


def sync_file(file: IO[bytes]) -> None:
    """Wait until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: a file that was renamed, added or deleted is so for good."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: str | PathLike[str], most: int | None = None) -> bytes:
    """All bytes of a file, or the first `most`; OSError for a pipe, a socket or a device, which might never end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no file but a pipe or a device")
        return file.read(-1 if most is None else most)


def json_object(text: str) -> dict[str, Any] | None:
    """A JSON object, or None where `text` is anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # also a number of thousands of digits
        return None
    return found if isinstance(found, dict) else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or anything else."""
    try:
        return json_object(read_regular(path).decode()) or {}
    except (OSError, ValueError):
        return {}


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What writing fails with when the disk, the user's share of it or the largest file allowed is full."""


@contextlib.contextmanager
def tolerate_full(say: Callable[[OSError], None]) -> Iterator[None]:
    """Go on after a write for which there is no room, once `say` was told; other errors come through."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        say(error)


def replace_text(path: Path, text: str) -> None:
    """Write a text file that readers see whole, the old one or the new one, also when this process is killed."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:  # a full disk: the half of it takes room from others
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
