"""Tokens on the disk: a row of flat files and the start of every document; writing them, and reading them back."""

import hashlib
from pathlib import Path

import numpy as np

from model.errors import UserError
from pretrain.data.blocks import BlockHasher, Blocks
from pretrain.data.manifest import AGAIN, FileEntry, Manifest
from pretrain.data.sound import SoundFiles, read_whole
from pretrain.data.unfinished import OpenFile, SplitSoFar
from pretrain.machine.files import sync_file

SHARD_TOKENS = 100_000_000
WAITING = 4096
"""Documents whose starts and sizes are written at once."""


class HashedFile:
    """A file being written, its hashes growing with it; `close` returns once the bytes are on the disk."""

    def __init__(self, path: Path, begun: OpenFile | None = None):
        """A new file, or one of which `begun` stays, and nothing behind it."""
        self.name, self.bytes = path.name, 0
        self._file, self._sha256, self.blocks = path.open("r+b" if begun else "wb"), hashlib.sha256(), BlockHasher()
        while begun and self.bytes < begun.bytes:
            self._hash(self._file.read(min(begun.bytes - self.bytes, 1 << 20)))
        self._file.truncate(self.bytes)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash(data)

    def reached(self) -> OpenFile:
        """What stands in it, once that is on the disk."""
        sync_file(self._file)
        return OpenFile(name=self.name, bytes=self.bytes, sha256=self._sha256.hexdigest())

    def _hash(self, data: bytes) -> None:
        self._sha256.update(data)
        self.blocks.update(data)
        self.bytes += len(data)

    def close(self, tokens: int) -> FileEntry:
        sync_file(self._file)
        self._file.close()
        return FileEntry(name=self.name, bytes=self.bytes, sha256=self._sha256.hexdigest(), tokens=tokens)


class ShardWriter:
    """Streams the documents of one split into `<split>-00000.bin`, …, their starts into `<split>.index.bin`,
    and the bytes of their text into `<split>.bytes.bin`.

    Shards are cut at exactly `shard_tokens`, so a document may lie in two of them. Tokens are little-endian `dtype`,
    starts little-endian uint64 with the total at the end. With `begun`, what `reached` said, it goes on from there.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        dtype: np.dtype,
        shard_tokens: int = SHARD_TOKENS,
        begun: SplitSoFar | None = None,
    ):
        self.documents, self.tokens, self.bytes = (begun.documents, begun.tokens, begun.bytes) if begun else (0, 0, 0)
        self.files, self.blocks = list(begun.files if begun else ()), list(begun.blocks if begun else ())
        self._folder, self._split, self._dtype, self._shard_tokens = folder, split, dtype, shard_tokens
        self._index = HashedFile(folder / f"{split}.index.bin", begun.index if begun else None)
        self._sizes = HashedFile(folder / f"{split}.bytes.bin", begun.text_bytes if begun else None)
        self._starts, self._text_bytes = list[int](), list[int]()
        shard = begun.shard if begun else None
        self._shard = HashedFile(folder / shard.name, shard) if shard else None

    def add(self, ids: list[int], text_bytes: int) -> None:
        """Append one document, its markers included, and the bytes of its text."""
        self._text_bytes.append(text_bytes)
        self._starts.append(self.tokens)
        tokens = np.array(ids, dtype=self._dtype)
        while tokens.size:
            if self._shard is None:
                self._shard = HashedFile(self._folder / f"{self._split}-{len(self.files):05d}.bin")
            room = self._shard_tokens - self._in_shard
            self._shard.write(tokens[:room].tobytes())
            self.tokens += len(tokens[:room])
            tokens = tokens[room:]
            if self._in_shard == self._shard_tokens:
                self._finish_shard()
        self.documents += 1
        self.bytes += text_bytes
        if len(self._starts) == WAITING:
            self._flush()

    def reached(self) -> SplitSoFar:
        """How far it has come, once that is on the disk."""
        self._flush()
        return SplitSoFar(
            documents=self.documents,
            tokens=self.tokens,
            bytes=self.bytes,
            files=tuple(self.files),
            blocks=tuple(self.blocks),
            index=self._index.reached(),
            text_bytes=self._sizes.reached(),
            shard=self._shard.reached() if self._shard else None,
        )

    def close(self) -> tuple[FileEntry, FileEntry]:
        """Finish the last shard, the index and the sizes; the latter two are returned, the shards are in `files`.

        `blocks` has the digests of every file's blocks then, by its name.
        """
        if self._shard is not None:
            self._finish_shard()
        self._starts.append(self.tokens)
        self._flush()
        self.blocks += [(file.name, file.blocks.hexdigest()) for file in (self._index, self._sizes)]
        return self._index.close(tokens=0), self._sizes.close(tokens=0)

    def _flush(self) -> None:
        self._index.write(np.array(self._starts, dtype="<u8").tobytes())
        self._sizes.write(np.array(self._text_bytes, dtype="<u8").tobytes())
        self._starts, self._text_bytes = [], []

    @property
    def _in_shard(self) -> int:
        return self._shard.bytes // self._dtype.itemsize if self._shard else 0

    def _finish_shard(self) -> None:
        assert self._shard is not None
        self.blocks.append((self._shard.name, self._shard.blocks.hexdigest()))
        self.files.append(self._shard.close(self._in_shard))
        self._shard = None


class Tokens:
    """`n_tokens` token ids, of which `read` returns any stretch, over shard borders too."""

    def __init__(self, folder: Path, manifest: Manifest, split: str, blocks: Blocks | None):
        entry = manifest.split(split)
        self._dtype, self._shards = manifest.token_dtype, SoundFiles(folder, entry.files, blocks)
        self._ends = np.cumsum([file.tokens for file in entry.files])
        self._vocab_size = manifest.ids
        self.n_tokens = entry.tokens

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens start … start + length. int64 [length].

        UserError names a shard that changed, was cut, or has an id beyond the vocabulary.
        """
        pieces, width = [], self._dtype.itemsize
        while length:
            shard = int(np.searchsorted(self._ends, start, side="right"))
            first = start - (int(self._ends[shard - 1]) if shard else 0)
            count = min(length, int(self._ends[shard]) - start)
            read = self._shards.read(shard, first * width, count * width)
            piece = np.frombuffer(read, self._dtype).astype(np.int64)
            if piece.max() >= self._vocab_size:
                raise UserError(
                    f"{self._shards.paths[shard]}: token {piece.max()} is beyond the vocabulary of "
                    f"{self._vocab_size}; {AGAIN}"
                )
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return np.concatenate(pieces)


def document_starts(folder: Path, manifest: Manifest, split: str) -> np.ndarray:
    """The first token of each document, then the number of tokens. int64 [documents + 1]."""
    path = folder / manifest.split(split).index.name
    starts = read_whole(path, manifest.split(split).index, "<u8").astype(np.int64)
    if starts[0] != 0 or starts[-1] != manifest.split(split).tokens or (np.diff(starts) < 1).any():
        raise UserError(f"{path}: the starts of the documents are not in order; {AGAIN}")
    return starts
