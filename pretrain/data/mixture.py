"""Several prepared corpora as one stream of samples, in given shares."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from model.errors import UserError
from model.seeding import derive_seed
from pretrain.data.dataset import Batch, Seen, TokenDataset
from pretrain.data.manifest import fingerprint_of

BLOCK = 10_000
"""Samples in which every source gets exactly its share, so that weights of up to four decimals are met exactly."""


class Turns:
    """Which source each sample of a mixture is of, by arithmetic alone.

    In each block of BLOCK samples source s has `quotas[s]` of them: its share, by the largest remainder. They lie as
    evenly as they can (Webster's method: the k-th of q at (k + 1/2) / q of the block), and each block begins somewhere
    else in that pattern, as (seed, number of the block) says. So every batch is near the shares too, and how many
    samples of a source come before any other is a sum of two table entries.

    `shares`: parts of the samples, of any sum. A source whose share is less than half a sample of a block may have a
    quota of 0.
    """

    def __init__(self, shares: Sequence[float], seed: int):
        exact = np.array(shares, dtype=np.float64) / sum(shares) * BLOCK
        quotas = np.floor(exact).astype(np.int64)
        quotas[np.argsort(quotas - exact, kind="stable")[: BLOCK - quotas.sum()]] += 1
        self.quotas: list[int] = quotas.tolist()
        places = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in self.quotas])
        self._pattern = np.repeat(np.arange(len(quotas)), quotas)[np.argsort(places, kind="stable")]  # [BLOCK]
        ones = self._pattern[:, None] == np.arange(len(quotas))
        self._before = np.concatenate([np.zeros_like(quotas)[None], ones.cumsum(0)])  # [BLOCK + 1, sources]
        self._seed = seed

    def before(self, cursor: int) -> list[int]:
        """Samples of each source among samples 0 … cursor, the last not included."""
        block, offset = divmod(cursor, BLOCK)
        first = self._first(block)
        round_trip, last = divmod(first + offset, BLOCK)
        found = self._before[last] - self._before[first] + round_trip * self._before[BLOCK]
        return [block * quota + count for quota, count in zip(self.quotas, found.tolist(), strict=True)]

    def of(self, cursor: int, n: int) -> np.ndarray:
        """The source of samples cursor … cursor + n. int64 [n]."""
        parts = []
        while n:
            block, offset = divmod(cursor, BLOCK)
            length = min(n, BLOCK - offset)
            parts.append(self._pattern[(self._first(block) + offset + np.arange(length)) % BLOCK])
            cursor, n = cursor + length, n - length
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _first(self, block: int) -> int:
        """Where in the pattern a block begins."""
        return derive_seed(self._seed, "mixture", block) % BLOCK


class MixtureDataset:
    """An endless stream of samples from one split of several corpora; what `TokenDataset` has, this has too.

    `weights` are shares of the tokens that are trained on, padding not counted. With packing "document", whose rows
    differ in length, a corpus therefore gets samples by weight over mean tokens of its rows: over an epoch of it, that
    is its share of tokens. Within a corpus every row comes once per epoch, in an order keyed by (seed, its name,
    epoch). The order in which the corpora are given changes nothing.

    Raises UserError where a corpus cannot be read or is too short, where two have different tokenizers or are the same
    corpus, and for a weight that is too small to get a sample.
    """

    def __init__(
        self,
        paths: dict[str, str],
        weights: dict[str, float],
        split: Literal["train", "val"],
        seq_len: int,
        packing: Literal["concat", "document"],
        seed: int,
    ):
        names = sorted(paths)
        self.seq_len, self.split = seq_len, split
        self._sources = {
            name: TokenDataset(
                paths[name], split, seq_len, packing, derive_seed(seed, "mixture", name), f"data.mixture.{name}"
            )
            for name in names
        }
        self.shares = {name: weights[name] / sum(weights.values()) for name in names}
        """Parts of the tokens, of sum 1."""
        _require_one_tokenizer(self._sources)
        per_row = {name: source.tokens_per_row for name, source in self._sources.items()}
        self._turns = Turns([self.shares[name] / per_row[name] for name in names], seed)
        self._parts = dict(zip(names, self._turns.quotas, strict=True))
        for name, quota in self._parts.items():
            if not quota:
                raise UserError(
                    f"data.mixture.{name}.weight {weights[name]:g} is less than one row in {BLOCK:,} of the mixture; "
                    f"raise it, or leave {name} out"
                )
        self.tokens_per_row = sum(per_row[name] * quota for name, quota in self._parts.items()) / BLOCK
        """Input tokens of a row on average, padding not counted."""
        one = self._sources[names[0]]
        self.tokenizer, self.vocab_size = one.tokenizer, one.vocab_size
        self.n_samples = sum(source.n_samples for source in self._sources.values())
        self.n_tokens = sum(source.n_tokens for source in self._sources.values())
        self.fingerprint = fingerprint_of({name: source.fingerprint for name, source in self._sources.items()})
        notes = [f"{name}: {source.bytes_note}" for name, source in self._sources.items() if source.bytes_note]
        self.bytes_note = "; ".join(notes) or None

    @property
    def sources(self) -> dict[str, TokenDataset]:
        """The corpora by name, in alphabetical order."""
        return self._sources

    def batch(self, cursor: int, n: int) -> Batch:
        """Samples cursor … cursor + n of the stream."""
        turns = torch.from_numpy(self._turns.of(cursor, n))
        tokens, targets = (torch.empty((n, self.seq_len), dtype=torch.int64) for _ in range(2))
        for index, (source, start, count) in enumerate(self._runs(cursor, n)):
            if count:
                part = source.batch(start, count)
                tokens[turns == index], targets[turns == index] = part.tokens, part.targets
        return Batch(tokens, targets)

    def count(self, cursor: int, n: int) -> tuple[int, int]:
        """(input tokens without padding, targets) of samples cursor … cursor + n, without reading them."""
        counts = [source.count(start, count) for source, start, count in self._runs(cursor, n)]
        return sum(tokens for tokens, _ in counts), sum(targets for _, targets in counts)

    def target_bytes(self, cursor: int, n: int) -> int:
        """UTF-8 bytes of the text that the targets of samples cursor … cursor + n stand for."""
        return sum(source.target_bytes(start, count) for source, start, count in self._runs(cursor, n))

    def seen(self, cursor: int, n: int) -> dict[str, Seen]:
        """What samples cursor … cursor + n are to each corpus."""
        runs = zip(self._sources, self._runs(cursor, n), strict=True)
        return {name: Seen(count, source.count(start, count)[0]) for name, (source, start, count) in runs}

    def epochs(self, n: int) -> str:
        """How often n samples go through each corpus, in words."""
        counts = zip(self._sources.items(), self._turns.before(n), strict=True)
        parts = [f"{count / source.n_samples:.2f} epochs of {name}" for (name, source), count in counts]
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

    def require_rows(self, n: int) -> None:
        """UserError unless each corpus has the rows that an optimizer step of n samples takes of it."""
        for name, source in self._sources.items():
            source.require_rows(-(-n * self._parts[name] // BLOCK))

    def _runs(self, cursor: int, n: int) -> list[tuple[TokenDataset, int, int]]:
        """For each corpus: itself, its first sample among cursor … cursor + n, and how many of them are its own."""
        starts, stops = self._turns.before(cursor), self._turns.before(cursor + n)
        return [
            (source, start, stop - start)
            for source, start, stop in zip(self._sources.values(), starts, stops, strict=True)
        ]


def _require_one_tokenizer(sources: dict[str, TokenDataset]) -> None:
    """UserError unless an id means the same in all corpora, and each is another one."""
    first = next((source for source in sources.values() if source.tokenizer), next(iter(sources.values())))
    for name, source in sources.items():
        one, other = first.key.rpartition(".")[2], source.tokenizer
        if first.tokenizer is None and source.vocab_size != first.vocab_size:
            raise UserError(
                f"data.mixture: {name} has a vocabulary of {source.vocab_size} ids and {one} one of "
                f"{first.vocab_size}; all corpora of a mixture need the same ids"
            )
        if first.tokenizer and (other is None or other.identity != first.tokenizer.identity):
            what = f"{name} has no tokenizer and {one} has one" if other is None else f"{name} has another than {one}"
            raise UserError(
                f"data.mixture: all corpora need one tokenizer, but {what}; prepare {name} again with --tokenizer "
                f"{first.tokenizer.path}"
            )
    corpora = {source.fingerprint: name for name, source in sources.items()}
    for name, source in sources.items():
        if (same := corpora[source.fingerprint]) != name:
            raise UserError(
                f"data.mixture: {name} and {same} are the same corpus; leave one out and give the other both weights"
            )
