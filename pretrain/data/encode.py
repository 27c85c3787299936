"""Texts to token shards."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from model.errors import UserError
from pretrain.data.documents import SkipLog, Skipped
from pretrain.data.manifest import SPLITS, SplitEntry
from pretrain.data.progress import Progress
from pretrain.data.shards import ShardWriter
from pretrain.data.tokenizer import Tokenizer
from pretrain.machine.fault import fault_point

BATCH_BYTES = 1_000_000
THREADS = len(os.sched_getaffinity(0))


class Encoder:
    """Writes the documents of both splits into `folder`, each as [bos] + ids + [eos] with the markers that exist.

    `quotas` are tokens per split after which further documents of that split are passed over; once every split has
    its quota, reading stops.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, dtype: np.dtype, shard_tokens: int, quotas: dict[str, float]
    ) -> None:
        self._tokenizer, self._quotas = tokenizer, quotas
        self._writers = {split: ShardWriter(folder, split, dtype, shard_tokens) for split in SPLITS}
        self._bytes = dict.fromkeys(SPLITS, 0)
        self.blocks: list[tuple[str, str]] = []
        """By file, the digests of its blocks, once `run` has ended."""
        self._begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self._end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]

    def run(self, parts: Iterable[tuple[str, str]], log: SkipLog, progress: Progress) -> dict[str, SplitEntry]:
        """Encode all of `parts`, (split, text) each; UserError when a split stays empty."""
        for batch in self._batches(parts):
            encoded = self._tokenizer.encode_many([text for _, text in batch], threads=THREADS)
            for (split, text), ids in zip(batch, encoded, strict=True):
                size = len(text.encode())
                progress.advance(size)
                if not ids:
                    log.add(Skipped(f"a document of split {split}", "no tokens"))
                elif not self._full(split):
                    self._writers[split].add([*self._begin, *ids, *self._end], size)
                    self._bytes[split] += size
            fault_point("prepare_batch")
        return {split: self._finish(split) for split in SPLITS}

    def _batches(self, parts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
        batch, size = [], 0
        for split, text in parts:
            if self._full(split):
                if all(map(self._full, SPLITS)):
                    break
                continue
            batch.append((split, text))
            size += len(text)
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

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
            bytes=self._bytes[split],
            files=tuple(writer.files),
            index=index,
            text_bytes=text_bytes,
        )
