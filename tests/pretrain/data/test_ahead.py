"""Reading ahead: the same items in the same order, an error at its place, no more than asked for, no thread left."""

import threading
from collections.abc import Iterator

import pytest

from pretrain.data.ahead import CHUNK_BYTES, Ahead, in_turn
from pretrain.data.documents import Document


def test_items_come_in_order_and_an_error_at_its_place():
    def items() -> Iterator[int]:
        yield from range(50)
        raise KeyError("at fifty")

    ahead = iter(Ahead(items(), 2))
    assert [next(ahead) for _ in range(50)] == [*range(50)]
    with pytest.raises(KeyError, match="at fifty"):
        next(ahead)


def test_no_more_is_made_than_depth_and_closing_ends_the_thread():
    made = []
    waiting = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == 4:
                waiting.set()
            yield number

    ahead = Ahead(items(), 3)
    assert next(iter(ahead)) == 0
    assert waiting.wait(10)
    assert len(made) <= 5  # taken, three waiting, one in hand
    ahead.close()
    ahead._thread.join(10)
    assert not ahead._thread.is_alive()
    assert len(made) < 100


def test_a_chain_is_closed_from_its_end():
    first = Ahead(iter(range(10**6)), 1)
    second = Ahead(map(str, first), 1)
    assert next(iter(second)) == "0"
    second.close()
    first.close()
    for each in (first, second):
        each._thread.join(10)
        assert not each._thread.is_alive()


def test_files_are_read_at_once_in_bounded_memory():
    begun = []

    def read(name: str, count: int) -> Iterator[Document]:
        for row in range(count):
            begun.append((name, row))
            yield Document(f"{name}{row}", bytes(CHUNK_BYTES), 0.5)

    sources = [(True, lambda name=name: read(name, 40)) for name in "abcd"]
    found = in_turn(sources, 2)
    names = [next(found).name]
    assert {name for name, _ in begun} <= {"a", "b"}
    names += [record.name for record in found]
    assert names == [f"{name}{row}" for name in "abcd" for row in range(40)]
    some = in_turn([(True, lambda: read("e", 40)), (False, lambda: read("f", 2))], 2)
    assert next(some).name == "e0"
    some.close()
    assert sum(name == "e" for name, _ in begun) <= 12
