"""One process at a time in a run folder: the kernel's lock on a file, or a file alone where there is no such lock.

The kernel's (flock) goes with the process, however it ends. Some network and FUSE file systems have none. There the
file `lock.owner`, which only one process can create, says whose the folder is; a kill leaves it behind, and it counts
for nothing once that process is known to be gone.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

from model.errors import UserError
from model.strict_json import parse_object

PATIENCE_S = 10.0
"""How long to wait for a lock whose owner is gone: its last memory or children may go more slowly than it did."""

POLL_S = 0.05

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""What flock fails with where another process holds the lock; with anything else where it has no locks."""


class FolderLock:
    """The lock on a folder that exists; held from its making to `release`. UserError when another process has it."""

    def __init__(self, folder: Path, of: str):
        self.of = of
        """What is locked, for sentences."""
        self._file: IO[bytes] | None = None
        self._mine = _this_process()
        self._owner_file: Path | None = None
        deadline = time.monotonic() + PATIENCE_S
        # Not through a link: what is written here would go to wherever it leads.
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        file = os.fdopen(descriptor, "r+b")
        try:
            if self._take_kernels(file, deadline):
                _write(file, self._mine)
            else:
                self._owner_file = self._take_file(folder / "lock.owner", deadline)
        except BaseException:
            file.close()
            raise
        self._file = file
        os.register_at_fork(after_in_child=self._forget)

    def release(self) -> None:
        if self._owner_file is not None and _read(self._owner_file) == self._mine:
            self._owner_file.unlink(missing_ok=True)
        self._forget()

    def _forget(self) -> None:
        """Let go of the file: a child that outlives this process must not keep the lock for it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take_kernels(self, file: IO[bytes], deadline: float) -> bool:
        """Take the kernel's lock; False where the file system has none."""
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in HELD:
                    return False
                file.seek(0)
                owner = _parsed(file.read(4096))
                if not _is_gone(owner) or time.monotonic() > deadline:
                    raise UserError(
                        f"run.dir: {self.of} is in use by {_words(owner)}; wait for it or choose another"
                    ) from None
                time.sleep(POLL_S)

    def _take_file(self, path: Path, deadline: float) -> Path:
        """Create the file that says whose the folder is, where there is none or its owner is gone."""
        while True:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                owner = _read(path)
                # One without a word is of a process that is about to write it, or was killed before it could.
                if owner is None and time.monotonic() < deadline:
                    time.sleep(POLL_S)
                    continue
                if owner is not None and not _is_gone(owner):
                    raise UserError(
                        f"run.dir: {self.of} is in use by {_words(owner)}; wait for it or choose another, or, if you "
                        f"know that it has ended, delete {path}"
                    ) from None
                _clear(path, owner)
                continue
            try:
                with os.fdopen(descriptor, "wb") as file:
                    _write(file, self._mine)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            return path


def _clear(path: Path, owner: dict[str, Any] | None) -> None:
    """Take away the file of an `owner` that is gone, and nobody else's: another may have been quicker to do so."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) == owner:
            aside.unlink()
        else:
            with contextlib.suppress(OSError):
                os.link(aside, path)
            aside.unlink()


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": _started(os.getpid()),
        "boot": _line("/proc/sys/kernel/random/boot_id"),
        "space": _space(),
    }


def _is_gone(owner: dict[str, Any] | None) -> bool:
    """Whether a process is known to have ended: on this machine, in a space of process numbers that is this one's.

    The number may be another process's by now; that one began at another time, or after another start of the machine.
    """
    mine = _this_process()
    if owner is None or owner["host"] != mine["host"]:
        return False
    if owner["boot"] != mine["boot"]:
        return True
    if owner["space"] != mine["space"]:
        return False
    started = _started(owner["pid"])
    if started is not None:
        return started != owner["started"]
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return Path("/proc/self/stat").exists()  # there, a process without a start is one that only waits to be buried


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None for one that has ended or cannot be asked."""
    fields = (_line(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else None


def _space() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _line(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _write(file: IO[bytes], owner: dict[str, Any]) -> None:
    file.truncate(0)
    file.seek(0)
    file.write(json.dumps(owner).encode())
    file.flush()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            return _parsed(file.read(4096))
    except OSError:
        return None


def _parsed(data: bytes) -> dict[str, Any] | None:
    """The process that `data` names; None where it names none."""
    try:
        owner = parse_object(data)
    except ValueError:
        return None
    texts = all(owner.get(key) is None or isinstance(owner[key], str) for key in ("host", "started", "boot", "space"))
    right = texts and type(owner.get("pid")) is int and 0 < owner["pid"] < 2**31
    return owner if right and owner.keys() == _this_process().keys() else None


def _words(owner: dict[str, Any] | None) -> str:
    return f"process {owner['pid']} on {str(owner['host'])[:100]}" if owner else "another process"
