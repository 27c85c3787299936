"""Ids to token shards, piece by piece: what `pretrain.data.shards` reads."""

from pathlib import Path

import numpy as np

from pretrain.data.manifest import FileEntry, SplitEntry
from pretrain.data.shards import HashedFile
from pretrain.data.tokenised.piece import Piece


class PieceWriter:
    """One split, written as pieces come: shards of `shard_tokens`, starts of documents and, if known, their bytes."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int, with_bytes: bool):
        self.documents, self.tokens, self.bytes = 0, 0, 0
        self.blocks: list[tuple[str, str]] = []
        """By file, the digests of its blocks, once it is closed."""
        self._folder, self._split, self._dtype, self._shard_tokens = folder, split, dtype, shard_tokens
        self._files: list[FileEntry] = []
        self._shard: HashedFile | None = None
        self._in_shard = 0
        self._index = HashedFile(folder / f"{split}.index.bin")
        self._sizes = HashedFile(folder / f"{split}.bytes.bin") if with_bytes else None

    def add(self, piece: Piece, sizes: np.ndarray | None) -> None:
        """Append whole documents; `sizes` are the bytes of text of each, int64 [documents]."""
        self._index.write((piece.starts + self.tokens).astype("<u8").tobytes())
        if self._sizes is not None:
            assert sizes is not None
            self._sizes.write(sizes.astype("<u8").tobytes())
            self.bytes += int(sizes.sum())
        ids = piece.ids.astype(self._dtype)
        while ids.size:
            if self._shard is None:
                self._shard = HashedFile(self._folder / f"{self._split}-{len(self._files):05d}.bin")
            part, ids = np.split(ids, [self._shard_tokens - self._in_shard])
            self._shard.write(part.tobytes())
            self._in_shard += len(part)
            if self._in_shard == self._shard_tokens:
                self._finish_shard()
        self.documents += len(piece.starts)
        self.tokens += len(piece.ids)

    def close(self) -> SplitEntry:
        """Finish all files; at least one document was added."""
        if self._shard is not None:
            self._finish_shard()
        self._index.write(np.uint64(self.tokens).astype("<u8").tobytes())
        return SplitEntry(
            documents=self.documents,
            tokens=self.tokens,
            bytes=self.bytes or None,
            files=tuple(self._files),
            index=self._finished(self._index, 0),
            text_bytes=None if self._sizes is None else self._finished(self._sizes, 0),
        )

    def _finish_shard(self) -> None:
        assert self._shard is not None
        self._files.append(self._finished(self._shard, self._in_shard))
        self._shard, self._in_shard = None, 0

    def _finished(self, file: HashedFile, tokens: int) -> FileEntry:
        self.blocks.append((file.name, file.blocks.hexdigest()))
        return file.close(tokens)
