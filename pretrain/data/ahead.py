"""Reading ahead in threads: what comes next is made while the caller works on what came before."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

from pretrain.data.documents import Document, Skipped

T = TypeVar("T")

CHUNK_BYTES, RECORD_BYTES = 1 << 18, 256
"""About as many bytes of text go from one thread to another at once; what a record takes beside its text."""
CHUNKS = 4
"""Chunks of one file that wait at most."""


class Ahead(Generic[T]):
    """The items of `items` in their order, made by a thread that is at most `depth` of them ahead.

    An error is raised where the item would be that it prevents. `close` ends the thread.
    """

    def __init__(self, items: Iterable[T], depth: int):
        self._queue: Queue[tuple[bool, T | BaseException | None]] = Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            is_item, found = self._queue.get()
            if is_item:
                yield found  # type: ignore[misc]
                continue
            self._thread.join()
            if isinstance(found, BaseException):
                raise found
            return

    def close(self) -> None:
        """Let the thread end, which it does once it has made the item that it is about."""
        self._closed.set()
        while True:
            try:
                self._queue.get_nowait()
            except Empty:
                return

    def _work(self, items: Iterable[T]) -> None:
        end: BaseException | None = None
        try:
            for item in items:
                self._queue.put((True, item))
                if self._closed.is_set():
                    break
        except BaseException as error:
            end = error
        try:
            self._queue.put((False, end), block=not self._closed.is_set())
        except Full:  # nobody waits for the end of what is closed, as there is an item to take
            return


Records = Iterable[Document | Skipped]


def in_turn(sources: Iterable[tuple[bool, Callable[[], Records]]], width: int) -> Iterator[Document | Skipped]:
    """The records of each source, one source after the other.

    A source that is marked True is read by a thread of its own, begun while one of the `width - 1` before it is read:
    for files of which much of the reading is done outside of Python's lock, as decompression is.
    """
    waiting, begun = iter(sources), deque[Ahead[list[Document | Skipped]] | Callable[[], Records]]()
    try:
        while True:
            while len(begun) < width and (source := next(waiting, None)) is not None:
                threaded, read = source
                begun.append(Ahead(_chunks(read()), CHUNKS) if threaded and width > 1 else read)
            if not begun:
                return
            first = begun[0]
            if isinstance(first, Ahead):
                for chunk in first:
                    yield from chunk
            else:
                yield from first()
            begun.popleft()
    finally:
        for each in begun:
            if isinstance(each, Ahead):
                each.close()


def _chunks(records: Records) -> Iterator[list[Document | Skipped]]:
    chunk: list[Document | Skipped] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += RECORD_BYTES + (len(record.raw) if isinstance(record, Document) else 0)
        if size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
