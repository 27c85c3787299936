"""Rows of files that store a table by columns: Parquet, and Arrow as `datasets` saves it."""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from pretrain.data.documents import Document, Skipped
from pretrain.data.sources.files import shortened
from pretrain.data.sources.rows import row_document

ARROW_FILE = b"ARROW1"
"""First bytes of Arrow's file format; its stream format, in which `datasets` saves, has none of its own."""


def parquet_rows(name: str, stream: BinaryIO, key: str) -> Iterator[Document | Skipped]:
    """The values of one column."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream)
        yield from _rows(name, file.iter_batches(batch_size=1024, columns=[key]), file.schema_arrow.names, key)
    except (pyarrow.ArrowException, UnicodeError, MemoryError):  # of a column's name; of an absurd size
        yield Skipped(name, "unreadable file")


def arrow_rows(name: str, stream: BinaryIO, key: str) -> Iterator[Document | Skipped]:
    """The values of one column, in a file of either of Arrow's formats."""
    import pyarrow
    import pyarrow.ipc

    try:
        in_file_format = stream.read(len(ARROW_FILE)) == ARROW_FILE
        stream.seek(0)
        reader = (pyarrow.ipc.open_file if in_file_format else pyarrow.ipc.open_stream)(stream)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if in_file_format else reader
        columns = reader.schema.names
        chosen = (batch.select([key] if columns.count(key) == 1 else []) for batch in batches)
        yield from _rows(name, chosen, columns, key)
    except (pyarrow.ArrowException, UnicodeError, MemoryError):
        yield Skipped(name, "unreadable file")


def _rows(name: str, batches: Iterable[Any], columns: list[str], key: str) -> Iterator[Document | Skipped]:
    """The values of batches of the wanted column, or of no column where the file has none of that name."""
    row, note = 0, "" if key in columns else f", which has {shortened(columns) or 'no column'}"
    for batch in batches:
        for value in _values(batch) if batch.num_columns else [None] * batch.num_rows:
            place = f"{name}:{row + 1}"
            if isinstance(value, UnicodeDecodeError):
                yield Skipped(place, "invalid UTF-8")
            else:
                record = row_document(name, row, value, place)
                yield record if isinstance(record, Document) else record._replace(name=place + note)
            row += 1


def _values(batch: Any) -> list[object]:
    """Values of the first column; a string that is no UTF-8 is the error itself."""
    _require_sound(batch.column(0))
    try:
        return batch.column(0).to_pylist()
    except UnicodeDecodeError:
        return [_value(cell) for cell in batch.column(0)]


def _require_sound(column: Any) -> None:
    """pyarrow.ArrowInvalid where a column points outside of its own bytes, which would end the process when read.

    Strings are looked at as bytes: one that is no UTF-8 costs itself alone.
    """
    import pyarrow

    column.validate()
    as_bytes = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}.get(column.type)
    (column if as_bytes is None else column.view(as_bytes)).validate(full=True)


def _value(cell: Any) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return error
