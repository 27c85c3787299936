"""Reading tokens: the shards of one split as one memory-mapped row of numbers."""

from pathlib import Path

import numpy as np

from model.errors import UserError
from pretrain.data.manifest import AGAIN, Manifest


class Tokens:
    """`n_tokens` token ids, of which `read` returns any stretch, over shard borders too."""

    def __init__(self, folder: Path, manifest: Manifest, split: str):
        entry = manifest.split(split)
        self._paths = [folder / file.name for file in entry.files]
        self._shards = [np.memmap(path, dtype=manifest.token_dtype, mode="r") for path in self._paths]
        self._ends = np.cumsum([file.tokens for file in entry.files])
        self._vocab_size = manifest.tokenizer.vocab_size
        self.n_tokens = entry.tokens

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens start … start + length. int64 [length]. UserError names a shard with an id beyond the vocabulary."""
        pieces = []
        while length:
            shard = int(np.searchsorted(self._ends, start, side="right"))
            first = start - (int(self._ends[shard - 1]) if shard else 0)
            piece = self._shards[shard][first : first + length].astype(np.int64)
            if piece.max() >= self._vocab_size:
                raise UserError(
                    f"{self._paths[shard]}: token {piece.max()} is beyond the vocabulary of {self._vocab_size}; {AGAIN}"
                )
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return np.concatenate(pieces)


def document_starts(folder: Path, manifest: Manifest, split: str) -> np.ndarray:
    """The first token of each document, then the number of tokens. int64 [documents + 1]."""
    path = folder / manifest.split(split).index.name
    starts = np.fromfile(path, dtype="<u8").astype(np.int64)
    if starts[0] != 0 or starts[-1] != manifest.split(split).tokens or (np.diff(starts) < 1).any():
        raise UserError(f"{path}: the starts of the documents are not in order; {AGAIN}")
    return starts
