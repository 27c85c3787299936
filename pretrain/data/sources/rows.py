"""Lines of text, and rows of tables (JSON values, CSV, Parquet), one document each, in bounded memory."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from pretrain.data.documents import BOM, MAX_LINE, Document, Skipped, score
from pretrain.data.sources.files import shortened

NO_TEXT = "no text under the key"
CHUNK_BYTES = 1 << 16
LINE_CHUNK_BYTES = 1 << 20
_BETWEEN_VALUES, _BETWEEN_ELEMENTS = re.compile("[ \\t\\r\\n\ufeff]*"), re.compile("[ \\t\\r\\n,]*")


def row_document(name: str, row: int, value: object, place: str) -> Document | Skipped:
    """One row of a table as a document; a surrogate that is no character becomes invalid UTF-8, to be counted."""
    if not isinstance(value, str):
        return Skipped(place, NO_TEXT)
    return Document(place, value.encode("utf-8", "surrogatepass"), score(name, row))


def keyed_document(name: str, row: int, value: object, key: str, place: str) -> Document | Skipped:
    """The text under `key` of one row; where there is none, the place says which keys there are."""
    if not isinstance(value, dict):
        return Skipped(f"{place}, no object with keys", NO_TEXT)
    record = row_document(name, row, value.get(key), place)
    if isinstance(record, Document):
        return record
    if key in value:
        return record._replace(name=f"{place}, where {key} is of type {type(value[key]).__name__}")
    return record._replace(name=f"{place}, which has {shortened([str(k) for k in value]) or 'no key'}")


def json_rows(name: str, stream: io.BufferedReader, key: str) -> Iterator[Document | Skipped]:
    """Values on a line each, or the elements of one array, or one value after another over several lines."""
    begin = stream.peek(CHUNK_BYTES).removeprefix(BOM).lstrip()
    if begin.startswith(b"[") or begin.partition(b"\n")[0].strip() == b"{":
        yield from _json_values(name, stream, key)
        return
    for row, line in enumerate(lines(stream)):
        place = f"{name}:{row + 1}"
        if line is None:
            yield Skipped(place, "line over 10 MB")
            continue
        if not (line := line.removeprefix(BOM).strip()):
            continue
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError:
            yield Skipped(place, "invalid UTF-8")
        except (ValueError, RecursionError):
            yield Skipped(place, "broken JSON")
        else:
            yield keyed_document(name, row, value, key, place)


def _json_values(name: str, stream: BinaryIO, key: str) -> Iterator[Document | Skipped]:
    """Elements of arrays and values between them, in bounded memory; what is broken ends the file."""
    # A byte that is no UTF-8 becomes a lone surrogate, so that it costs its own row alone.
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    decoder, text, at, inside, row, wanted, end = json.JSONDecoder(), "", 0, False, 0, CHUNK_BYTES, False
    while True:
        at = _skip(text, at, inside)
        if text.startswith("]" if inside else "[", at):
            at, inside = at + 1, not inside
            continue
        try:
            value, after = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            after = at
        # A value that reaches the end of what was read may go on: a number, for example.
        if after > at and (after < len(text) or end):
            yield keyed_document(name, row, value, key, f"{name}:{row + 1}")
            at, row, wanted = after, row + 1, CHUNK_BYTES
        elif end or len(text) - at > MAX_LINE:
            if at < len(text) or inside:
                yield Skipped(f"{name}:{row + 1} and all after it", "broken JSON")
            return
        else:
            raw = stream.read(wanted)
            text, at, wanted, end = text[at:] + decode(raw, not raw), 0, 2 * wanted, not raw


def _skip(text: str, at: int, inside: bool) -> int:
    """The place of the next value, or of the end of an array."""
    found = (_BETWEEN_ELEMENTS if inside else _BETWEEN_VALUES).match(text, at)
    return found.end() if found else at


def csv_rows(name: str, stream: BinaryIO, key: str, delimiter: str) -> Iterator[Document | Skipped]:
    """Rows below a line of column names; what stands in them stays as it is."""
    csv.field_size_limit(MAX_LINE)
    table = csv.DictReader(_TextLines(stream), delimiter=delimiter)
    row = 0
    while True:
        try:
            value = next(table, None)
        except csv.Error:
            yield Skipped(f"{name}:{row + 1}", "broken CSV")
        else:
            if value is None:
                return
            columns = {str(column): cell for column, cell in value.items() if column is not None}
            yield keyed_document(name, row, columns, key, f"{name}:{row + 1}")
        row += 1


class _TextLines:
    """Lines of a table as text; one that is too long is a csv.Error, and the next comes after it."""

    def __init__(self, stream: BinaryIO):
        self._lines, self._parts = lines(stream), list[bytes]()
        self._first = True

    def __iter__(self) -> "_TextLines":
        return self

    def __next__(self) -> str:
        if not self._parts:
            line = next(self._lines)
            if line is None:
                raise csv.Error("line over 10 MB")
            # A carriage return ends a line for csv too, and alone it must not stand inside of one.
            self._parts = line.splitlines(keepends=True)[::-1]
        part = self._parts.pop()
        if self._first:
            part, self._first = part.removeprefix(BOM), False
        return part.decode("utf-8", "surrogateescape")


def lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines with their ends; None stands for one that is too long.

    A line ends with LF, or with CR in a file without LF (one that an old Macintosh wrote).
    """
    line = stream.readline(MAX_LINE + 1)
    if not line.endswith(b"\n") and b"\r" in line:
        yield from _carriage_returns(line, stream)
        return
    while line:
        if len(line) <= MAX_LINE:
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
            yield None
        line = stream.readline(MAX_LINE + 1)


def _carriage_returns(rest: bytes, stream: BinaryIO) -> Iterator[bytes | None]:
    long = False
    while True:
        *whole, rest = rest.split(b"\r")
        for line in whole:
            yield None if long or len(line) >= MAX_LINE else line + b"\r"
            long = False
        if len(rest) > MAX_LINE:
            long, rest = True, b""
        chunk = stream.read(LINE_CHUNK_BYTES)
        if not chunk:
            break
        rest += chunk
    if rest or long:
        yield None if long else rest
