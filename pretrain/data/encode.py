"""Texts to token shards."""

import math
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.errors import UserError
from pretrain.data.ahead import Ahead
from pretrain.data.documents import Document, SkipLog, Skipped, readable
from pretrain.data.manifest import SPLITS, SplitEntry
from pretrain.data.progress import Progress
from pretrain.data.shards import ShardWriter
from pretrain.data.survey import Division
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.unfinished import Skips, Unfinished
from pretrain.machine.fault import fault_point

BATCH_BYTES = 1_000_000
"""About so many characters are encoded at once."""
THREADS = len(os.sched_getaffinity(0))


class Batch(NamedTuple):
    """Documents that are encoded together, and what had been read of the source by their end."""

    parts: list[tuple[str, str]]
    """("train" or "val", text)."""
    records: int
    log: SkipLog


def batches(records: Iterable[Document | Skipped], divided: Division, log: SkipLog, read: int = 0) -> Iterator[Batch]:
    """The documents of a source but its first `read` records, of which `log` tells already."""
    count = read

    def counted() -> Iterator[Document | Skipped]:
        nonlocal count
        for record in islice(records, read, None):
            count += 1
            yield record

    parts, size = list[tuple[str, str]](), 0
    for split, text in divided.parts(readable(counted(), log)):
        parts.append((split, text))
        size += len(text)
        # Both parts of an only document belong together: a run that is taken up goes on with the next record.
        if size >= BATCH_BYTES and not divided.by_position:
            yield Batch(parts, count, log.copy())
            parts, size = [], 0
    yield Batch(parts, count, log.copy())


class Encoder:
    """Writes the documents of both splits into `folder`, each as [bos] + ids + [eos] with the markers that exist.

    `quotas` are tokens per split after which further documents of that split are passed over; once every split has
    its quota, reading stops. It goes on where `so_far` is, and writes that anew into `folder` after each shard.
    Reading, encoding and writing are done at the same time, each in a thread.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        dtype: np.dtype,
        shard_tokens: int,
        quotas: dict[str, float],
        so_far: Unfinished,
    ) -> None:
        self._folder, self._tokenizer, self._quotas, self._so_far = folder, tokenizer, quotas, so_far
        self._writers = {
            split: ShardWriter(folder, split, dtype, shard_tokens, so_far.splits.get(split)) for split in SPLITS
        }
        self.blocks: list[tuple[str, str]] = []
        """By file, the digests of its blocks, once `run` has ended."""
        self.log = _log(so_far.unencoded)
        """Documents without a token; once `run` has ended, those too that could not be read."""
        self._begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self._end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]

    def run(
        self, records: Iterable[Document | Skipped], divided: Division, progress: Progress
    ) -> dict[str, SplitEntry]:
        """Encode the documents of a source; UserError when a split stays empty."""
        read = Ahead(batches(records, divided, _log(self._so_far.unread), self._so_far.records), 1)
        encoded = Ahead(map(self._encode, read), 1)
        unread = SkipLog()
        try:
            for batch, ids, sizes in encoded:
                unread = batch.log
                self._write(batch, ids, sizes, progress)
                fault_point("prepare_batch")
                if all(map(self._full, SPLITS)):
                    break
        finally:
            encoded.close()
            read.close()
        self.log = unread.merged(self.log)
        return {split: self._finish(split) for split in SPLITS}

    def _encode(self, batch: Batch) -> tuple[Batch, list[list[int]], list[int]]:
        """A batch without the documents that certainly nobody needs, their ids and the bytes of their text."""
        batch = batch._replace(parts=[part for part in batch.parts if not self._full(part[0])])
        texts = [text for _, text in batch.parts]
        return batch, self._tokenizer.encode_many(texts, threads=THREADS), [len(text.encode()) for text in texts]

    def _write(self, batch: Batch, encoded: list[list[int]], sizes: list[int], progress: Progress) -> None:
        shards = sum(len(writer.files) for writer in self._writers.values())
        for (split, _), ids, size in zip(batch.parts, encoded, sizes, strict=True):
            if not ids:
                self.log.add(Skipped(f"a document of split {split}", "no tokens"))
            elif not self._full(split):
                self._writers[split].add([*self._begin, *ids, *self._end], size)
        progress.advance(sum(sizes))
        wanted, tokens = sum(self._quotas.values()), sum(writer.tokens for writer in self._writers.values())
        if tokens and wanted < math.inf:
            progress.expect(progress.done * max(1.0, wanted / tokens))
        if sum(len(writer.files) for writer in self._writers.values()) > shards:
            splits = {split: writer.reached() for split, writer in self._writers.items()}
            done = {"records": batch.records, "splits": splits}
            logs = {"unread": _skips(batch.log), "unencoded": _skips(self.log)}
            self._so_far.model_copy(update=done | logs).write(self._folder)

    def _full(self, split: str) -> bool:
        return self._writers[split].tokens >= self._quotas[split]

    def _finish(self, split: str) -> SplitEntry:
        writer = self._writers[split]
        if writer.documents == 0:
            raise UserError(
                f"--val-fraction: no document is left for split {split}; give more text or another fraction"
            )
        index, text_bytes = writer.close()
        self.blocks += writer.blocks
        return SplitEntry(
            documents=writer.documents,
            tokens=writer.tokens,
            bytes=writer.bytes,
            files=tuple(writer.files),
            index=index,
            text_bytes=text_bytes,
        )


def _log(skips: Skips) -> SkipLog:
    return SkipLog(dict(skips.counts), dict(skips.first))


def _skips(log: SkipLog) -> Skips:
    return Skips(counts=dict(log.counts), first=dict(log.first))
