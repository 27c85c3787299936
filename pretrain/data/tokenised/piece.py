"""What every reader of ids gives: pieces of whole documents, in order."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

PIECE_TOKENS = 1 << 20
"""Ids read at a time, about; so many are a document where nobody knows where one ends."""

Split = Literal["train", "val"]


class Piece(NamedTuple):
    """Ids, int64 [n], and the place in them at which each document begins, int64 [documents]; the first is 0."""

    ids: np.ndarray
    starts: np.ndarray


class TokenFile(ABC):
    """Ids of one file or of one split of a folder. What its beginning and size tell is checked when it is opened.

    UserError for a file that is cut, empty, of another form or cannot be read.
    """

    form: str
    """The form's name."""
    name: str
    """Its name below what was given."""
    paths: tuple[Path, ...]
    """What is read from the disk."""
    split: Split | None = None
    """What its name says it is; None where it says nothing."""
    n_tokens: int
    """Ids in it; 0 where only reading it all would tell."""
    knows_documents: bool
    """Whether it says where documents begin; else pieces are documents of PIECE_TOKENS."""
    notes: tuple[str, ...] = ()
    """What a reader of the result should know, in sentences."""

    def part(self, piece: Piece) -> float:
        """How much of the file a piece of it is, 0 to 1."""
        return len(piece.ids) / self.n_tokens

    @abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """All of it."""
