"""SentencePiece tokenizers: training one on a sample of the corpus, and using any given one."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece

from model.errors import RunFailed, UserError
from model.lfs import HEAD, POINTER
from pretrain.machine.child import in_child
from pretrain.machine.fault import fault_point
from pretrain.machine.files import read_regular

SENTENCE_CHARACTERS = 4096
LARGEST_MODEL = 1 << 30
"""Bytes; a model of 256,000 pieces has 5 MB. Of a larger file the beginning is no model."""
SPACE = "\u2581"
"""A space, as pieces write it."""
SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "character_coverage": 0.9995,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "max_sentence_length": 4 * SENTENCE_CHARACTERS,  # bytes
    "num_threads": 4,  # part of the model file: a constant, so that every machine writes the same bytes
    "minloglevel": 2,
}
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")
ROUND_TRIPS = {
    "newlines": "a\nb\n\nc",
    "tabs": "a\tb",
    "runs of spaces": "a    b",
    "spaces at the end": "a ",
    "spaces at the beginning": " a",
    "ligatures and full-width letters": "\ufb01 \uff21",
    "letters outside its vocabulary": "\u6f22 \U0001f642",
}
"""Short texts that some tokenizers do not give back, by what is lost then."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a BPE model with byte fallback: any text comes back from its ids unchanged, save U+2581, which is a space.

    The texts go in as blocks of lines rather than line by line, because SentencePiece drops the end of each
    "sentence": only inside a block does it see newlines, and it learns pieces such as a colon with its newline.
    """
    sentences = list(_sentences(texts))

    def train() -> bytes:
        model = io.BytesIO()
        fault_point("prepare_tokenizer")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, **SETTINGS
        )
        return model.getvalue()

    try:
        # The trainer's C++ loop lets no signal handler run for minutes; in a process of its own it can be killed.
        return in_child("training the tokenizer", train)
    except RunFailed:
        raise
    except RuntimeError as error:
        raise _vocabulary_error(str(error), vocab_size) from error


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Blocks of whole lines of at most SENTENCE_CHARACTERS; a longer line is cut."""
    for text in texts:
        start = 0
        while start < len(text):
            stop = start + SENTENCE_CHARACTERS
            if stop < len(text):
                stop = text.rfind("\n", start, stop) + 1 or stop
            yield text[start:stop]
            start = stop


def _vocabulary_error(message: str, vocab_size: int) -> UserError:
    if found := re.search(r"value <= (\d+)", message):
        return UserError(f"--vocab-size {vocab_size}: too large for this text; the largest possible is {found[1]}")
    if found := re.search(r"required_chars\. \d+ vs\.? (\d+)", message):
        return UserError(f"--vocab-size {vocab_size}: too small for this text; the smallest possible is {found[1]}")
    return UserError(f"--vocab-size {vocab_size}: SentencePiece cannot train on this text ({message}); give more text")


class Tokenizer:
    """A SentencePiece model file, ours or anyone's: LLaMA's (BPE, dummy prefix), T5's (unigram, no bos).

    Raises UserError when `path`, or `model` where its bytes have been read already, holds no SentencePiece model.
    """

    def __init__(self, path: str | PathLike[str], model: bytes | None = None):
        self.path = Path(path)
        try:
            model = read_regular(self.path, LARGEST_MODEL) if model is None else model
        except (OSError, ValueError) as error:  # ValueError: NUL in a path
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{path}: the tokenizer cannot be read ({reason}); give a SentencePiece .model") from error
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = _load(model, self.path)
        self.vocab_size: int = self._processor.vocab_size()
        markers = (getattr(self._processor, f"{role}_id")() for role in ("bos", "eos", "pad", "unk"))
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (None if i < 0 else i for i in markers)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone; markers such as "<s>" in it are ordinary characters."""
        return self._processor.encode(text)

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Ids of each text, the same for any number of threads."""
        return self._processor.encode(list(texts), num_threads=threads)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def losses(self) -> list[str]:
        """What a text does not keep when it is encoded and decoded, in words; empty when nothing is lost."""
        return [what for what, text in ROUND_TRIPS.items() if self.decode(self.encode(text)) != text]

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of text that each id stands for: 0 for specials, 1 for byte pieces. int32 [vocab_size]."""
        return np.array([self._bytes_of(i) for i in range(self.vocab_size)], dtype=np.int32)

    def added_space(self) -> Literal["first", "last"] | None:
        """Which piece of a document begins, or ends, with a space that the model adds: its text has one byte less."""
        pieces = self._processor.encode("a", out_type=str)
        if pieces[:1] and pieces[0].startswith(SPACE):
            return "first"
        return "last" if pieces[-1:] and pieces[-1].endswith(SPACE) else None

    def space_bytes(self, where: Literal["first", "last"]) -> np.ndarray:
        """1 for each id that has a space there to count, else 0. int32 [vocab_size]."""
        pieces = (self._processor.id_to_piece(i) for i in range(self.vocab_size))
        spaced = [piece.startswith(SPACE) if where == "first" else piece.endswith(SPACE) for piece in pieces]
        return np.array(spaced, dtype=np.int32) * (self.token_bytes() > 0)

    def _bytes_of(self, i: int) -> int:
        if self._processor.is_control(i) or self._processor.is_unknown(i) or self._processor.is_unused(i):
            return 0
        if self._processor.is_byte(i):
            return 1
        return len(self._processor.id_to_piece(i).replace(SPACE, " ").encode())


def _load(model: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = bool(model) and processor.LoadFromSerializedProto(model)
        processor.id_to_piece(list(range(processor.vocab_size() if loaded else 0)))
    except (RuntimeError, OSError, UnicodeDecodeError):  # the last of a piece that is no text
        loaded = False
    if not loaded:
        found = _stand_in(model)
        what = f" but {found}" if found else "; give a .model file or let prepare train one"
        raise UserError(f"{path}: not a SentencePiece model{what}")
    return processor


def _stand_in(head: bytes) -> str | None:
    """What the beginning of a file shows it to be, with the way out; None where it shows nothing."""
    if head.startswith(HEAD):
        return f"a {POINTER}"
    if TIKTOKEN.match(head):
        return "a tiktoken file, which SentencePiece cannot read; give a SentencePiece .model or let prepare train one"
    if head.lstrip()[:1] == b"{":
        return "a JSON file (a tokenizer.json?); give the SentencePiece .model or let prepare train one"
    return None
