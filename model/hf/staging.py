"""A folder that is filled aside and takes its place when it is complete; the one before it stays until then."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import UserError

PARTIAL = ".partial"
"""Ending of the name beside the folder under which it is filled, and its predecessor deleted."""

REPLACED = ".replaced"
"""Ending of the name under which the predecessor, still whole, makes room."""


@contextmanager
def staged(
    out: Path, *, overwrite: bool, mark: str = "config.json", kind: str = "a Hugging Face model folder"
) -> Iterator[Path]:
    """A new empty folder that becomes `out` where the body ends well; else it is gone, unless the body has moved it.

    A kill leaves the old folder or the new one, and beside it at most what the next call removes. Between two renames
    the old one has only its other name; the next call gives it back. UserError when `out` exists, unless `overwrite`
    and it holds `mark`, the file by which `kind` is known; when it cannot be written; and when another process is about
    it.
    """
    out = Path(os.path.realpath(out))  # resolve() has no OSError for links in a circle
    folder, replaced = out.with_name(out.name + PARTIAL), out.with_name(out.name + REPLACED)
    with writing(out):
        if out.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder, out)
    try:
        with writing(out):
            if replaced.exists() and not out.exists():
                replaced.rename(out)
            if out.exists() and not overwrite:
                raise UserError(f"{out}: exists already; choose another folder or overwrite it (--overwrite)")
            if out.exists() and not (out / mark).is_file():
                raise UserError(f"{out}: exists and is not {kind}, so it is not replaced; choose another")
            shutil.rmtree(replaced, ignore_errors=True)
            for path in folder.iterdir():  # a kill's; the lock is on the folder itself
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield folder
        with writing(out):
            _sync(*(path for path in folder.iterdir() if path.is_file()), folder)
            if out.exists():
                out.rename(replaced)
            folder.rename(out)
            _sync(out.parent)
            if replaced.exists():
                replaced.rename(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def writing(out: Path | str) -> Iterator[None]:
    """Turn an OSError of the body into a UserError that names `out`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); choose another folder or make room"
        ) from None


def _sync(*paths: Path) -> None:
    """Wait until files, or the names in folders, are on the disk: a name that outlives a power cut has its bytes."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(folder: Path, out: Path) -> int:
    """Make `folder` and take it; the lock goes with the process, however it ends."""
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not folder.exists() or not os.path.samestat(os.fstat(lock), folder.stat()):  # it has just become `out`
            raise BlockingIOError
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"{out}: another process is writing it; wait for it or choose another folder") from None
    return lock
