"""Batches by arithmetic: which tokens sample i of the run holds follows from (seed, i) alone."""

from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.errors import UserError
from model.seeding import derive_seed
from pretrain.data.blocks import read_blocks
from pretrain.data.manifest import AGAIN, Manifest, fingerprint, load_manifest
from pretrain.data.shards import Tokens, document_starts
from pretrain.data.text_bytes import TextBytes
from pretrain.data.tokenizer import Tokenizer, open_tokenizer

IGNORE = -100
ROUNDS = 6
"""Rounds of the Feistel network in `permute`."""


class Batch(NamedTuple):
    """Inputs and what should follow each of them; a target of IGNORE does not count."""

    tokens: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64


class Seen(NamedTuple):
    """Samples of one corpus, and their input tokens without padding."""

    samples: int
    tokens: int


class TokenDataset:
    """An endless stream of samples from one split of a prepared corpus.

    Samples are numbered by a cursor: epoch `cursor // n_samples` visits every row once, in an order keyed by
    (seed, epoch); the held-out split comes in its natural order. There is no state, so the stream does not depend on
    the number of processes and a resume needs the cursor alone.

    packing "concat": documents end to end, cut into windows of seq_len inputs and as many targets. packing "document":
    one document per row, cut to seq_len tokens or padded, with at most seq_len - 1 targets (the papers' harness). A
    document of one token has no target and gets no row.

    `key` is what names the corpus in the configuration, for messages. Without a tokenizer (`tokenizer` is None) there
    are ids and no bytes of text.

    Raises UserError when a file is missing, truncated or contradicts the manifest, or when there is not one row; and
    where a file is read whose contents are not those that `prepare` wrote.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        split: Literal["train", "val"],
        seq_len: int,
        packing: Literal["concat", "document"],
        seed: int,
        key: str = "data.path",
    ):
        self.key, self.folder = key, str(path)
        folder = Path(path)
        manifest, blocks = load_manifest(folder), read_blocks(folder)
        self.seq_len, self.split, self._seed = seq_len, split, seed
        self.fingerprint = fingerprint(folder)
        self.tokenizer = _tokenizer_of(folder, manifest)
        self.vocab_size = manifest.ids
        markers = (self.tokenizer.pad_id, self.tokenizer.eos_id) if self.tokenizer else ()
        self._pad = next((i for i in markers if i is not None), 0)
        if packing == "document" and manifest.source.get("documents") == "unknown":
            raise UserError(
                f'data.packing: "document" needs to know where documents begin, which {folder} does not; use '
                'data.packing = "concat", or prepare it again with --document-end ID'
            )
        self._tokens = Tokens(folder, manifest, split, blocks)
        self.n_tokens = self._tokens.n_tokens
        self._bytes: TextBytes | None = None
        self.bytes_note: str | None = f"{folder} has no tokenizer: bits per byte are not known"
        if self.tokenizer:
            self._bytes = TextBytes(folder, manifest, split, self.tokenizer, self._tokens, blocks)
            self.bytes_note = self._bytes.note
        self._starts = document_starts(folder, manifest, split) if packing == "document" else None
        self._rows = None if self._starts is None else np.flatnonzero(np.diff(self._starts) > 1)
        if self._rows is not None and (seq_len < 2 or not len(self._rows)):
            raise UserError(
                f'data.packing: "document" leaves split {split} of {folder} nothing to predict, since each row would '
                'hold one token; use data.packing = "concat"'
            )
        self.n_samples = (self.n_tokens - 1) // seq_len if self._rows is None else len(self._rows)
        if self.n_samples < 1:
            raise UserError(
                f"{key}: corpus too short, split {split} of {folder} holds {self.n_tokens} tokens, one row needs "
                f"train.seq_len + 1 = {seq_len + 1}; prepare more text or lower train.seq_len"
            )

    def batch(self, cursor: int, n: int) -> Batch:
        """Samples cursor … cursor + n of the stream."""
        tokens = np.full((n, self.seq_len), self._pad, dtype=np.int64)
        targets = np.full((n, self.seq_len), IGNORE, dtype=np.int64)
        for row, (start, length) in enumerate(zip(*self._spans(cursor, n), strict=True)):
            ids = self._tokens.read(int(start), int(length))
            tokens[row, : len(ids)] = ids[: self.seq_len]
            targets[row, : len(ids) - 1] = ids[1:]
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets))

    def count(self, cursor: int, n: int) -> tuple[int, int]:
        """(input tokens without padding, targets) of samples cursor … cursor + n, without reading them."""
        _, lengths = self._spans(cursor, n)
        return int(np.minimum(lengths, self.seq_len).sum()), int((lengths - 1).sum())

    def target_bytes(self, cursor: int, n: int) -> int:
        """UTF-8 bytes of the text that the targets of samples cursor … cursor + n stand for; 0 without a tokenizer."""
        if self._bytes is None:
            return 0
        spans = zip(*self._spans(cursor, n), strict=True)
        return sum(self._bytes.between(int(start) + 1, int(start + length)) for start, length in spans)

    @property
    def sources(self) -> "dict[str, TokenDataset]":
        """The corpora of a mixture by name; this is none."""
        return {}

    def seen(self, cursor: int, n: int) -> dict[str, Seen]:
        """What samples cursor … cursor + n are to each corpus of a mixture; this is none."""
        return {}

    def epochs(self, n: int) -> str:
        """How often n samples go through the corpus, in words."""
        return f"{n / self.n_samples:.2f} epochs of {self.folder}"

    def require_rows(self, n: int) -> None:
        """UserError unless the corpus has n rows, as many as an optimizer step takes of it."""
        if self.n_samples < n:
            raise UserError(
                f"{self.key}: corpus too short, {self.folder} holds {self.n_samples} rows of {self.seq_len} tokens, "
                f"fewer than the {n} that an optimizer step takes of it (train.global_batch_size); prepare more text "
                "or take a smaller batch"
            )

    @property
    def tokens_per_row(self) -> float:
        """Input tokens of a row on average over an epoch, padding not counted."""
        if self._starts is None or self._rows is None:
            return float(self.seq_len)
        return float(np.minimum(np.diff(self._starts)[self._rows], self.seq_len).mean())

    def _spans(self, cursor: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(first token, number of tokens) of each sample, targets included."""
        samples = self._samples(cursor, n)
        if self._starts is None or self._rows is None:
            return samples * self.seq_len, np.full(n, self.seq_len + 1)
        documents = self._rows[samples]
        starts = self._starts[documents]
        return starts, np.minimum(self._starts[documents + 1] - starts, self.seq_len)

    def _samples(self, cursor: int, n: int) -> np.ndarray:
        first, offset = divmod(cursor, self.n_samples)  # Python's integers: no cursor is too large
        epochs, samples = np.divmod(np.arange(offset, offset + n), self.n_samples)
        if self.split == "train":
            for epoch in np.unique(epochs):
                seed = derive_seed(self._seed, "data", first + int(epoch))
                samples[epochs == epoch] = permute(samples[epochs == epoch], self.n_samples, seed)
        return samples


def _tokenizer_of(folder: Path, manifest: Manifest) -> Tokenizer | None:
    """The tokenizer that made the shards of a corpus; None where they came without one."""
    entry = manifest.tokenizer
    if entry is None:
        return None
    path = folder / entry.file
    found = open_tokenizer(path)
    made = (entry.file, entry.sha256, entry.bos, entry.eos, entry.pad)
    if found.identity != made or found.vocab_size != entry.vocab_size:
        raise UserError(f"{path}: this tokenizer did not make the shards beside it; {AGAIN}")
    return found


def permute(index: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Where each index of [0, n) goes under the permutation of [0, n) that `seed` keys. int64, the shape of `index`.

    A balanced Feistel network permutes the next power of four; an index that it sends beyond n is sent again until it
    falls inside (cycle walking: Black and Rogaway, CT-RSA 2002), four times on average at most.
    """
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [np.uint64(derive_seed(seed, "feistel", r)) for r in range(ROUNDS)]
    out = _feistel(np.asarray(index).astype(np.uint64), np.uint64(half_bits), keys)
    while (outside := out >= n).any():
        out[outside] = _feistel(out[outside], np.uint64(half_bits), keys)
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half_bits: np.uint64, keys: list[np.uint64]) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = x >> half_bits, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half_bits) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
