"""Reading the files of a corpus in pieces, so that nothing comes of them but what `prepare` wrote."""

import contextlib
import hashlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.errors import UserError
from pretrain.data.blocks import DIGEST_BYTES, Blocks, digest
from pretrain.data.manifest import AGAIN, FileEntry

MOST_OPEN = 128
"""Open files of one `SoundFiles`: a large corpus has more shards than a process may have files."""


class SoundFiles:
    """The files of `entries`, of which `read` returns any piece; safe for several threads.

    The block around a piece is compared with its hash when it is first read, and again once its file was written to.
    Bytes come by `pread`: a file that is cut while a run reads it is then an error with a sentence, where a memory map
    would end the process by SIGBUS without a word.

    Where `blocks` is None, nothing is compared (see `pretrain.data.verify`).
    """

    def __init__(self, folder: Path, entries: Sequence[FileEntry], blocks: Blocks | None):
        self.paths = [folder / entry.name for entry in entries]
        self._entries, self._block_bytes = entries, blocks.block_bytes if blocks else 0
        self._digests = [blocks.digests(entry.name, entry.bytes) if blocks else None for entry in entries]
        self._known = [bytearray(len(digests or b"") // DIGEST_BYTES) for digests in self._digests]
        self._stamps: dict[int, tuple[int, int]] = {}
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._open)

    def read(self, index: int, start: int, size: int) -> bytes:
        """Bytes start … start + size of file `index`. UserError names a file that is cut, changed or unreadable."""
        with self._lock:
            try:
                file = self._descriptor(index)
                if self._digests[index] is not None:
                    self._compare(index, file, start, size)
                return self._piece(index, file, start, size)
            except OSError as error:
                raise UserError(f"{self.paths[index]}: cannot be read ({error.strerror}); {AGAIN}") from None

    def _descriptor(self, index: int) -> int:
        file = self._open.get(index)
        if file is None:
            if len(self._open) >= MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
            file = self._open[index] = os.open(self.paths[index], os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(index)
        return file

    def _piece(self, index: int, file: int, start: int, size: int) -> bytes:
        data = os.pread(file, size, start)
        while len(data) < size:  # a read may return less than there is
            more = os.pread(file, size - len(data), start + len(data))
            if not more:
                raise UserError(
                    f"{self.paths[index]}: ends at byte {os.fstat(file).st_size}, where the manifest says "
                    f"{self._entries[index].bytes}: it was cut while it was being read; {AGAIN}"
                )
            data += more
        return data

    def _compare(self, index: int, file: int, start: int, size: int) -> None:
        """Compare the blocks of a piece that are not known to be sound; a file written to since then knows none."""
        status, known, digests, step = os.fstat(file), self._known[index], self._digests[index], self._block_bytes
        stamp = status.st_mtime_ns, status.st_size
        if self._stamps.setdefault(index, stamp) != stamp:
            known[:] = bytes(len(known))
            self._stamps[index] = stamp
        assert digests is not None
        for block in range(start // step, -(-(start + size) // step)):
            if known[block]:
                continue
            first = block * step
            found = self._piece(index, file, first, min(step, self._entries[index].bytes - first))
            if digest(found) != digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]:
                self._refuse(index, first, len(found))
            known[block] = 1

    def _refuse(self, index: int, first: int, size: int) -> None:
        """The manifest's hash of the whole file tells whether it or the list of its blocks is damaged."""
        path, entry = self.paths[index], self._entries[index]
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256:
                raise UserError(
                    f"{path.parent}: its blocks.json is damaged, though {path.name} is sound; write it anew: sparlow "
                    f"prepare --verify {path.parent}"
                )
        raise UserError(
            f"{path}: its contents changed since it was written, between byte {first} and {first + size}; {AGAIN}"
        )


class Column(Sequence[int]):
    """One file of little-endian 64-bit integers, read one by one."""

    def __init__(self, folder: Path, entry: FileEntry, blocks: Blocks | None):
        self._files, self._length = SoundFiles(folder, [entry], blocks), entry.bytes // 8

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        if not 0 <= index < self._length:
            raise IndexError(index)
        return int.from_bytes(self._files.read(0, 8 * index, 8), "little", signed=True)


def read_whole(path: Path, entry: FileEntry, dtype: str) -> np.ndarray:
    """All of a file, compared with the manifest's hash."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise UserError(f"{path}: its contents changed since it was written; {AGAIN}")
    return np.frombuffer(data, dtype=dtype)


def _close(descriptors: "OrderedDict[int, int]") -> None:
    for file in descriptors.values():
        with contextlib.suppress(OSError):
            os.close(file)
