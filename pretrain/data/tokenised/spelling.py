"""Bytes of the text that ids spell, document by document."""

import numpy as np

from pretrain.data.tokenised.piece import Piece
from pretrain.data.tokenizer import Tokenizer


class Spelling:
    """Counts the UTF-8 bytes of text that documents stand for: what their ids decode to, without the space that a
    tokenizer adds to a text.

    That is the text itself where the tokenizer loses nothing of one; `note` says so where it does, else None.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._spelt = tokenizer.token_bytes().astype(np.int64)
        self._edge = tokenizer.added_space()
        self._space = None if self._edge is None else tokenizer.space_bytes(self._edge)
        lost = tokenizer.losses()
        self.note = None
        if lost:
            self.note = (
                f"text loses its {', '.join(lost)} when it is encoded: bits per byte are over the text that the ids "
                "spell, not over what was lost"
            )

    def sizes(self, piece: Piece) -> np.ndarray:
        """Bytes of each document. int64 [documents]."""
        spelt = self._spelt[piece.ids]
        sizes = np.add.reduceat(spelt, piece.starts)
        if self._space is not None:
            spells = np.flatnonzero(spelt)  # the ids that are no markers
            ends = np.append(piece.starts[1:], len(piece.ids))
            first, last = np.searchsorted(spells, piece.starts), np.searchsorted(spells, ends) - 1
            some = last >= first
            edge = spells[(first if self._edge == "first" else last)[some]]
            sizes[some] -= self._space[piece.ids[edge]]
        return sizes
