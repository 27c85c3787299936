"""What every tokenizer can do, whatever file it comes from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

SPACE = "\u2581"
"""A space, as pieces of most tokenizers write it."""
ROUND_TRIPS = {
    "newlines": "a\nb\n\nc",
    "tabs": "a\tb",
    "runs of spaces": "a    b",
    "spaces at the end": "a ",
    "spaces at the beginning": " a",
    "capital letters": "A",
    "accents": "\u00e9",
    "ligatures and full-width letters": "\ufb01 \uff21",
    "letters outside its vocabulary": "\u6f22 \U0001f642",
}
"""Short texts that some tokenizers do not give back, by what is lost then."""


class Tokenizer(ABC):
    """Text to ids and back. Markers such as "<s>" that stand in a text are ordinary characters, in every kind.

    `kept` has the files, by name, that a corpus or a checkpoint keeps: from them alone the same tokenizer is opened.
    """

    file_name: ClassVar[str]
    """Name of the file that holds the vocabulary, in corpora and checkpoints."""
    library: ClassVar[str]
    """What reads that file."""
    path: Path
    """Where it was read from, for sentences."""
    kept: Mapping[str, bytes]
    vocab_size: int
    """Ids run from 0 to this."""
    bos_id: int | None
    """The marker before each document; None for none."""
    eos_id: int | None
    """The marker after each document; None for none."""
    pad_id: int | None
    unk_id: int | None
    notes: tuple[str, ...] = ()
    """What its reader had to choose, in sentences."""

    @property
    def sha256(self) -> str:
        """Hash of the file named `file_name`."""
        return hashlib.sha256(self.kept[self.file_name]).hexdigest()

    @property
    def identity(self) -> tuple[str, str, int | None, int | None, int | None]:
        """Equal for two tokenizers that make the same ids of every document."""
        return self.file_name, self.sha256, self.bos_id, self.eos_id, self.pad_id

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone, without markers around it."""

    @abstractmethod
    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Ids of each text, the same for any number of threads."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; markers stand for none."""

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of text that each id spells: 0 for markers, 1 for byte pieces. int32 [vocab_size]."""

    @abstractmethod
    def pieces(self, text: str) -> list[str]:
        """Pieces of `text`, as the vocabulary writes them, a space as SPACE."""

    @abstractmethod
    def piece(self, i: int) -> str:
        """The piece of an id, as `pieces` writes it."""

    def losses(self) -> list[str]:
        """What a text does not keep when it is encoded and decoded, in words; empty when nothing is lost."""
        return [what for what, text in ROUND_TRIPS.items() if self.decode(self.encode(text)) != text]

    def added_space(self) -> Literal["first", "last"] | None:
        """Which piece of a document begins, or ends, with a space that the model adds: its text has one byte less."""
        pieces = self.pieces("a")
        if pieces[:1] and pieces[0].startswith(SPACE):
            return "first"
        return "last" if pieces[-1:] and pieces[-1].endswith(SPACE) else None

    def space_bytes(self, where: Literal["first", "last"]) -> np.ndarray:
        """1 for each id that has a space there to count, else 0. int32 [vocab_size]."""
        pieces = map(self.piece, range(self.vocab_size))
        spaced = [piece.startswith(SPACE) if where == "first" else piece.endswith(SPACE) for piece in pieces]
        return np.array(spaced, dtype=np.int32) * (self.token_bytes() > 0)
