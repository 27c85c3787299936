"""A user's file as it was when it was found: what is added to it later is not read, and what is taken away is said."""

import io
import os
from pathlib import Path

from model.errors import UserError

WHILE = "while prepare was reading; run the same command again once nothing writes there"


class SeenFile(io.RawIOBase):
    """The first `size` bytes of a file, so that one that grows for ever has an end.

    UserError where it has become shorter, or is gone. OSError where it cannot be read.
    """

    def __init__(self, path: Path, size: int):
        self._path, self._size = path, size
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise UserError(f"{path}: was removed {WHILE}") from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        room = memoryview(buffer)[: max(0, self._size - self._file.tell())]
        count = self._file.readinto(room) if room else 0
        if room and not count:
            raise UserError(f"{self._path}: was cut to {os.fstat(self._file.fileno()).st_size} bytes {WHILE}")
        return count or 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset, whence = self._size + offset, io.SEEK_SET
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()


class _Reader(io.BufferedReader):
    """Asked for more than there is, as a damaged table asks, it makes no room for that."""

    def __init__(self, path: Path, size: int):
        super().__init__(SeenFile(path, size), 1 << 16)
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def seen(path: Path, size: int) -> io.BufferedReader:
    """The file as it was, to read from."""
    return _Reader(path, size)
