"""Micro-batches read ahead: a thread reads the next one while the training thread computes on the one before."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from pretrain.data.dataset import Batch
from pretrain.data.open import Dataset


class MicroBatchReader:
    """Micro-batches of `size` rows of `dataset`, for `device`; at most one is there before it is asked for.

    The thread starts with the first one that is read ahead, and ends with `close`. For a GPU it also copies batches to
    pinned memory, from which they are sent without the training thread waiting for it.
    """

    def __init__(self, dataset: Dataset, size: int, device: torch.device):
        self._dataset, self._size, self._device = dataset, size, device
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[Batch]] | None = None
        self.waited = 0.0
        """Seconds that the training thread has spent in `read`, whatever a GPU had still to do meanwhile."""

    def read(self, cursor: int, next_cursor: int | None) -> Batch:
        """The micro-batch at `cursor`; the one at `next_cursor`, where there is one, is read in the meantime.

        An error in reading one is raised when that one is asked for.
        """
        started = time.perf_counter()
        ahead, self._ahead = self._ahead, None
        batch = ahead[1].result() if ahead and ahead[0] == cursor else self._read(cursor)
        if next_cursor is not None:
            self._thread = self._thread or ThreadPoolExecutor(1, "micro-batches")
            self._ahead = next_cursor, self._thread.submit(self._read, next_cursor)
        self.waited += time.perf_counter() - started
        return batch

    def close(self) -> None:
        """End the thread, once it has read what it is reading."""
        if self._thread:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._ahead = None

    def _read(self, cursor: int) -> Batch:
        batch = self._dataset.batch(cursor, self._size)
        if self._device.type != "cuda":
            return batch
        with torch.cuda.device(self._device):  # which is a thread's own, and GPU 0 in a new one
            return Batch(*(tensor.pin_memory() for tensor in batch))
