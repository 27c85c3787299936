"""Megatron-LM's pairs of files: `X.bin` with the ids, `X.idx` with where its sequences and documents lie.

megatron/core/datasets/indexed_dataset.py. The index, little-endian: 9 bytes MMIDIDX 0 0; uint64 version, 1; uint8 code
of the ids' dtype; uint64 number of sequences; uint64 number of document indices, one more than documents; int32 ids in
each sequence; int64 byte at which each begins in X.bin; int64 sequence at which each document begins, then the number
of sequences. (Multimodal ones have an int8 per sequence at the end.) A document may be of several sequences: those
that `--split-sentences` makes.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from model.errors import UserError
from model.lfs import refuse_pointer
from pretrain.data.tokenised.piece import PIECE_TOKENS, Piece, Split, TokenFile

MAGIC = b"MMIDIDX\0\0"
HEAD = struct.Struct("<9sQBQQ")
CODES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}


class MegatronPair(TokenFile):
    """The ids of `X.bin` as `X.idx` orders them; documents are those of the index."""

    form, knows_documents = "Megatron .bin/.idx", True

    def __init__(self, index: Path, name: str, split: Split | None):
        self.name, self.split, self._index, self._bin = name, split, index, index.with_suffix(".bin")
        self.paths = (self._index, self._bin)
        for path in self.paths:
            refuse_pointer(path)
        try:
            data, size = index.read_bytes(), self._bin.stat().st_size
        except OSError as error:
            raise UserError(f"--tokens {error.filename}: cannot be read ({error.strerror})") from None
        if len(data) < HEAD.size or not data.startswith(MAGIC):
            raise UserError(f"--tokens {index}: not an index of Megatron-LM's (it does not begin with MMIDIDX)")
        _, version, code, sequences, documents = HEAD.unpack_from(data)
        if version != 1:
            raise UserError(f"--tokens {index}: version {version} of Megatron-LM's index, of which 1 is known")
        if not CODES.get(code, "float").startswith(("int", "uint")):
            raise UserError(f"--tokens {index}: says its ids are of dtype {CODES.get(code, code)}, which are no ids")
        self._dtype = np.dtype(CODES[code]).newbyteorder("<")
        expected = HEAD.size + sequences * 12 + documents * 8
        if len(data) not in (expected, expected + sequences):
            raise UserError(
                f"--tokens {index}: has {len(data):,} bytes where {sequences:,} sequences and {documents:,} document "
                f"indices take {expected:,}; it was cut short, copy it again"
            )
        at = HEAD.size
        self._lengths = np.frombuffer(data, "<i4", sequences, at).astype(np.int64)
        self._pointers = np.frombuffer(data, "<i8", sequences, at + 4 * sequences)
        first = np.frombuffer(data, "<i8", documents, at + 12 * sequences)
        ends = self._pointers + self._lengths * self._dtype.itemsize
        if (self._lengths < 0).any() or (self._pointers < 0).any():
            raise UserError(f"--tokens {index}: has negative lengths or places; it is damaged, copy it again")
        if sequences and ends.max() > size:
            raise UserError(
                f"--tokens {self._bin}: has {size:,} bytes where its .idx names ids up to byte {ends.max():,}; it was "
                "cut short, copy it again"
            )
        if not documents or first[0] != 0 or first[-1] != sequences or (np.diff(first) < 0).any():
            raise UserError(f"--tokens {index}: its documents are not in order; it is damaged, copy it again")
        self.n_tokens = int(self._lengths.sum())
        if not self.n_tokens:
            raise UserError(f"--tokens {self._bin}: holds no ids")
        ids_before = np.concatenate([[0], np.cumsum(self._lengths)])
        # A document without ids is none.
        self._first = first[:-1][np.diff(ids_before[first]) > 0]
        self._ids_before = ids_before

    def pieces(self) -> Iterator[Piece]:
        """Whole documents, about PIECE_TOKENS at a time."""
        starts = self._ids_before[self._first]
        ends = np.append(starts[1:], self.n_tokens)
        with self._bin.open("rb") as file:
            done = 0
            while done < len(starts):
                stop = max(done + 1, int(np.searchsorted(ends, starts[done] + PIECE_TOKENS, side="right")))
                last = self._first[stop] if stop < len(self._first) else len(self._lengths)
                ids = np.concatenate([self._read(file, i) for i in self._runs(int(self._first[done]), int(last))])
                yield Piece(ids, starts[done:stop] - starts[done])
                done = stop

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """(byte, ids) of sequences first … last, those that lie end to end as one."""
        width = self._dtype.itemsize
        ends = self._pointers[first:last] + self._lengths[first:last] * width
        breaks = np.flatnonzero(ends[:-1] != self._pointers[first + 1 : last]) + 1
        for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), last - first], strict=True):
            yield int(self._pointers[first + start]), int(self._lengths[first + start : first + stop].sum())

    def _read(self, file: BinaryIO, run: tuple[int, int]) -> np.ndarray:
        start, count = run
        file.seek(start)
        data = file.read(count * self._dtype.itemsize)
        if len(data) < count * self._dtype.itemsize:
            raise UserError(f"--tokens {self._bin}: was cut while it was read; copy it again")
        return np.frombuffer(data, self._dtype).astype(np.int64)
