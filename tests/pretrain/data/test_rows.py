"""Rows of damaged, huge and unusual tables: each costs itself alone, in bounded memory."""

import csv
import io
import tracemalloc

import pytest

from pretrain.data.documents import Document, Skipped
from pretrain.data.sources import rows
from pretrain.data.sources.rows import csv_rows, json_rows, lines

pytestmark = pytest.mark.fault("F24")


def read(found) -> tuple[list[str], list[str]]:
    """(texts, reasons of what is left out)."""
    records = list(found)
    texts = [r.raw.decode() for r in records if isinstance(r, Document)]
    return texts, [r.reason for r in records if isinstance(r, Skipped)]


def json_of(raw: bytes) -> tuple[list[str], list[str]]:
    return read(json_rows("a.json", io.BufferedReader(io.BytesIO(raw)), "text"))


def csv_of(raw: bytes) -> tuple[list[str], list[str]]:
    return read(csv_rows("a.csv", io.BytesIO(raw), "text", ","))


def test_a_number_at_the_border_of_two_chunks_is_one_value():
    numbers = ", ".join(str(10_000_000 + i) for i in range(30_000))
    assert json_of(f"[{numbers}]".encode()) == ([], ["no text under the key"] * 30_000)


@pytest.mark.parametrize("cut", [b"", b",", b", ", b', {"text": "b"'])
def test_an_array_without_its_end_is_told(cut):
    assert json_of(b'[{"text": "a"}' + cut) == (["a"], ["broken JSON"])


def test_a_broken_element_ends_the_reading_before_the_end_of_the_file(monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE", 100_000)
    raw = io.BytesIO(b'[{"text": "a"}, oops, ' + b'{"text": "b"}, ' * 1_000_000 + b"]")
    stream = io.BufferedReader(raw)
    assert read(json_rows("a.json", stream, "text")) == (["a"], ["broken JSON"])
    assert raw.tell() < 1_000_000


def test_the_first_column_of_a_csv_has_no_byte_order_mark_in_its_name():
    assert csv_of(b"\xef\xbb\xbftext,id\r\nhello,1\r\n") == (["hello"], [])


def test_a_long_csv_field_is_read_and_one_that_is_too_long_costs_itself(monkeypatch):
    csv.field_size_limit(131_072)  # Python's default
    long = "x" * 200_000
    assert csv_of(f"id,text\n1,{long}\n2,b\n".encode()) == ([long, "b"], [])
    monkeypatch.setattr(rows, "MAX_LINE", 100_000)
    assert csv_of(f"id,text\n1,a\n2,{long}\n3,b\n".encode()) == (["a", "b"], ["broken CSV"])


def test_a_huge_line_in_a_file_of_carriage_returns_takes_little_memory():
    class Huge(io.RawIOBase):
        """A short line, then one of 100 MB."""

        left = 100

        def readable(self):
            return True

        def readinto(self, buffer):
            if not self.left:
                return 0
            size = min(len(buffer), 1 << 20)
            buffer[:size] = (b"a\r" if self.left == 100 else b"xx") + b"x" * (size - 2)
            self.left -= 1
            return size

    tracemalloc.start()
    try:
        assert list(lines(io.BufferedReader(Huge(), 1 << 20))) == [b"a\r", None]
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
