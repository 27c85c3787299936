"""Flat files of ids: nanoGPT's `.bin`, which is nothing else, and llm.c's, which begins with a header.

llm.c (dev/data/data_common.py), also modded-nanogpt's: 256 int32, of which the first is 20240520 and the second 1 for
uint16 (or 20240801 and 7 for uint32), the third the number of ids; then the ids. All little-endian. nanoGPT
(data/*/prepare.py): ids from the first byte to the last, uint16. Neither says where a document begins: that is told by
the id that ends, or begins, each.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from model.errors import UserError
from model.lfs import refuse_pointer
from pretrain.data.tokenised.piece import PIECE_TOKENS, Piece, Split, TokenFile

Dtype = Literal["uint16", "uint32", "int32", "int64"]
HEADER_BYTES = 256 * 4
HEADERS: dict[tuple[int, int], Dtype] = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
"""By magic number and version, what the ids are."""
LONGEST_DOCUMENT = 64 * PIECE_TOKENS
"""Ids of one document at most, since each is in memory whole."""
EVALUATION = 20240522
"""Magic number of llm.c's multiple-choice files."""


class Marks:
    """The ids that tell where a document begins (`begin`, its first id) or ends (`end`, its last); None for neither."""

    def __init__(self, begin: int | None, end: int | None):
        self.begin, self.end = begin, end

    def __bool__(self) -> bool:
        return self.begin is not None or self.end is not None

    def starts(self, ids: np.ndarray) -> np.ndarray:
        """Where documents begin in `ids`, of which the first begins one. int64 [documents]."""
        begins = np.zeros(len(ids), dtype=bool)
        if self.begin is not None:
            begins |= ids == self.begin
        if self.end is not None:
            begins[1:] |= ids[:-1] == self.end
        begins[:1] = True
        return np.flatnonzero(begins)


class FlatFile(TokenFile):
    """A file of ids in a row, with llm.c's header or without.

    `dtype` is that of the ids where there is no header; None means uint16.
    """

    def __init__(self, path: Path, name: str, split: Split | None, dtype: Dtype | None, marks: Marks):
        self.name, self.paths, self.split, self._path, self._marks = name, (path,), split, path, marks
        self.knows_documents = bool(marks)
        refuse_pointer(path)
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                head = np.frombuffer(file.read(12).ljust(12, b"\0"), dtype="<i4").tolist()
        except OSError as error:
            raise UserError(f"--tokens {path}: cannot be read ({error.strerror})") from None
        if head[0] == EVALUATION:
            raise UserError(f"--tokens {path}: an evaluation file of llm.c (multiple choice), which is no text")
        header = HEADERS.get((head[0], head[1]))
        if header and dtype:
            raise UserError(f"--dtype {dtype}: {path} says itself that its ids are {header}; leave it out")
        self.form = "llm.c .bin" if header else "flat .bin"
        self._first = HEADER_BYTES if header else 0
        self._dtype = np.dtype(header or dtype or "uint16").newbyteorder("<")
        self.n_tokens, rest = divmod(max(0, size - self._first), self._dtype.itemsize)
        if header and (rest or self.n_tokens != head[2]):
            raise UserError(
                f"--tokens {path}: its header says {head[2]:,} ids and {self.n_tokens:,} are there; it was cut short "
                "or is damaged, copy it again"
            )
        if rest:
            raise UserError(
                f"--tokens {path}: {size:,} bytes are no whole number of {self._dtype.name} ids; it was cut short, or "
                "is of another --dtype"
            )
        if not self.n_tokens:
            raise UserError(f"--tokens {path}: holds no ids")

    def pieces(self) -> Iterator[Piece]:
        """All of it; the beginning of a document waits for its end."""
        width, left, waiting = self._dtype.itemsize, self.n_tokens, np.zeros(0, dtype=np.int64)
        with self._path.open("rb") as file:
            file.seek(self._first)
            while left:
                data = file.read(min(left, PIECE_TOKENS) * width)
                if len(data) < min(left, PIECE_TOKENS) * width:
                    raise UserError(f"--tokens {self._path}: was cut while it was read; copy it again")
                ids = np.frombuffer(data, self._dtype).astype(np.int64)
                left -= len(ids)
                if not self._marks:
                    yield Piece(ids, np.zeros(1, dtype=np.int64))
                    continue
                ids = np.concatenate([waiting, ids])
                starts = self._marks.starts(ids)
                whole = not left or (self._marks.end is not None and ids[-1] == self._marks.end)
                ended = len(ids) if whole else int(starts[-1])
                if ended:
                    yield Piece(ids[:ended], starts[starts < ended])
                waiting = ids[ended:]
                if len(waiting) > LONGEST_DOCUMENT:
                    raise UserError(
                        f"--document-end, --document-begin: {self._path} has {len(waiting):,} ids without this mark, "
                        "too many for one document; give the id that marks documents, or leave it out"
                    )
