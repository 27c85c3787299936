"""Bytes of text that tokens stand for."""

from bisect import bisect_right
from pathlib import Path

import numpy as np

from model.errors import UserError
from pretrain.data.blocks import Blocks
from pretrain.data.manifest import AGAIN, Manifest
from pretrain.data.shards import Tokens
from pretrain.data.sound import Column
from pretrain.data.tokenizer import Tokenizer


class TextBytes:
    """UTF-8 bytes of the original text behind any stretch of the tokens of one split; bits per byte are over them.

    A document's bytes are those of its text as it was read, counted by `prepare`, whatever its tokenizer loses of them
    (NFKC, removed spaces, unknown pieces) or adds (a space before the text). Where a stretch ends within a document,
    the document's bytes are shared out among its tokens in proportion to the text that each token spells. So the parts
    of a document always add up to its bytes, however an evaluation cuts it; and where the tokenizer keeps every byte,
    each token stands for just the bytes it spells, and the two ways of counting agree. What a lossy tokenizer leaves
    out costs no bits and counts as bytes: bits per byte then say how well the rest is predicted, per byte of the text.

    In a folder prepared without that record a document has the bytes that its tokens spell; `note` says so.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, tokenizer: Tokenizer, tokens: Tokens, blocks: Blocks | None
    ):
        entry = manifest.split(split)
        self._tokens = tokens
        # From the disk as far as they are asked for: with millions of documents they are large.
        self._index = folder / entry.index.name
        self._starts = Column(folder, entry.index, blocks)
        self.note, self._sizes = None, None
        if entry.text_bytes:
            self._sizes = Column(folder, entry.text_bytes, blocks)
        else:
            self.note = (
                f"{folder} was prepared by an earlier version, without the bytes of each document: bits per byte are "
                "over the text that its tokens spell"
            )
        self._spelt = tokenizer.token_bytes()
        self._edge = tokenizer.added_space()
        self._space = None if self._edge is None else tokenizer.space_bytes(self._edge)
        begin, end = (marker is not None for marker in (tokenizer.bos_id, tokenizer.eos_id))
        self._place = int(begin) if self._edge == "first" else -1 - int(end)
        self._text = slice(int(begin), -1 if end else None)
        self._last: tuple[int, np.ndarray] = (-1, np.zeros(1, dtype=np.int64))

    def between(self, start: int, end: int) -> int:
        """Bytes behind the tokens start … end."""
        total = 0
        document = bisect_right(self._starts, start) - 1
        while start < end:
            first, after = self._span(document)
            if not first <= start < after:
                raise UserError(f"{self._index}: the starts of the documents are not in order; {AGAIN}")
            stop = min(end, after)
            total += self._before(document, stop - first) - self._before(document, start - first)
            start, document = stop, document + 1
        return total

    def _span(self, document: int) -> tuple[int, int]:
        """The first token of a document and of the next; what no sound index has where there is no such document."""
        inside = 0 <= document < len(self._starts) - 1
        return (self._starts[document], self._starts[document + 1]) if inside else (0, 0)

    def _before(self, document: int, count: int) -> int:
        """Bytes behind the first `count` tokens of a document."""
        spelt = self._cumulated(document)
        if self._sizes is None:
            return int(spelt[count])
        return self._sizes[document] * int(spelt[count]) // max(1, int(spelt[-1]))  # 0: markers alone

    def _cumulated(self, document: int) -> np.ndarray:
        """Bytes that the first 0, 1, … tokens of a document spell. Kept for the next row, which may go on with it."""
        if self._last[0] != document:
            first, end = self._span(document)
            ids = self._tokens.read(first, end - first)
            spelt = self._spelt[ids].astype(np.int64)
            if self._space is not None:
                spelt[self._place] -= self._space[ids[self._place]]
            if self._sizes is not None and not spelt.any():  # unknown pieces alone
                spelt[self._text] = 1
            self._last = document, np.concatenate([[0], np.cumsum(spelt)])
        return self._last[1]
