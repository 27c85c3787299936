"""Files that must be whole: synced to the disk, or put in the place of an older one at once."""

import contextlib
import errno
import os
from pathlib import Path
from typing import IO

from pretrain.machine.fault import fault_flag, fault_point


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until its bytes are on the disk."""
    if fault_flag("disk_full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with path.open("wb") as file:
        for start in range(0, len(data), 2**24):
            file.write(data[start : start + 2**24])
            if start == 0:
                fault_point("mid_file")
        sync_file(file)


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
