"""SentencePiece models: ours or anyone's."""

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import sentencepiece

from model.errors import UserError
from model.hf.kept import MODEL
from model.lfs import HEAD, POINTER
from pretrain.data.tokenizer.base import SPACE, Tokenizer
from pretrain.machine.files import read_regular

LARGEST_MODEL = 1 << 30
"""Bytes; a model of 256,000 pieces has 5 MB. Of a larger file the beginning is no model."""
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file, ours or anyone's: LLaMA's (BPE, dummy prefix), T5's (unigram, no bos).

    Raises UserError when `path`, or `model` where its bytes have been read already, holds no SentencePiece model.
    """

    file_name, library = MODEL, "SentencePiece"

    def __init__(self, path: str | PathLike[str], model: bytes | None = None):
        self.path = Path(path)
        try:
            model = read_regular(self.path, LARGEST_MODEL) if model is None else model
        except (OSError, ValueError) as error:  # ValueError: NUL in a path
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{path}: the tokenizer cannot be read ({reason}); give a SentencePiece .model") from error
        self.kept = {MODEL: model}
        self._processor = _load(model, self.path)
        self.vocab_size = self._processor.vocab_size()
        markers = (getattr(self._processor, f"{role}_id")() for role in ("bos", "eos", "pad", "unk"))
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (None if i < 0 else i for i in markers)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        # Thread t of n takes texts t, t + n, t + 2n, …: dealt out by length, to and fro, all have about as much to do.
        longest = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        deals = [longest[start : start + threads] for start in range(0, len(texts), threads)]
        order = [i for turn, deal in enumerate(deals) for i in (deal if turn % 2 == 0 else reversed(deal))]
        found = self._processor.encode([texts[i] for i in order], num_threads=threads)
        ids: list[list[int]] = [[]] * len(texts)
        for i, each in zip(order, found, strict=True):
            ids[i] = each
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def token_bytes(self) -> np.ndarray:
        return np.array([self._bytes_of(i) for i in range(self.vocab_size)], dtype=np.int32)

    def pieces(self, text: str) -> list[str]:
        return self._processor.encode(text, out_type=str)

    def piece(self, i: int) -> str:
        return self._processor.id_to_piece(i)

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
        what = f" but {found}" if found else "; give a .model file or a tokenizer.json, or let prepare train one"
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
