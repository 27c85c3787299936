"""The user's own files and folders: plain text, JSON, CSV, Parquet and Arrow."""

import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from model.errors import UserError
from model.lfs import POINTER, is_pointer
from pretrain.data.ahead import in_turn
from pretrain.data.documents import Document, Skipped, score
from pretrain.data.sources.bounded import seen
from pretrain.data.sources.columns import arrow_rows, parquet_rows
from pretrain.data.sources.files import FileFinder, Named, listing_sha256
from pretrain.data.sources.rows import csv_rows, json_rows, lines

PLAIN = (".txt", ".md", ".rst", ".py")
PACKED = ("", ".gz", ".zst")
JSON = tuple(kind + packed for kind in (".jsonl", ".json") for packed in PACKED)
CSV = tuple(kind + packed for kind in (".csv", ".tsv") for packed in PACKED)
TYPES = (*PLAIN, *JSON, *CSV, ".parquet", ".arrow")
SHOWN_TYPES = ".txt .md .rst .py .jsonl .json .csv .tsv (or these four with .gz or .zst) .parquet .arrow"
SECTION_BYTES = 1 << 16
LARGE_BYTES = 1 << 20
"""A packed file or a table of so many bytes is worth a thread of its own."""
AT_ONCE = min(4, len(os.sched_getaffinity(0)))
"""Files that are read at once."""


class TextSource:
    """Files named by the user, and every file of a known type below the folders named by the user.

    A plain file is one document; one longer than 64 KiB becomes several, cut at line ends, so that a file of any size
    is read in little memory and a single book can be divided into training and held-out text. A row of a JSON, CSV,
    Parquet or Arrow file is one document: the string under `text_key`. Hidden files and folders are left out.
    """

    complete_survey = True

    def __init__(self, paths: list[str], text_key: str = "text") -> None:
        self.text_key = text_key
        finder = FileFinder("--text")
        for argument in paths:
            finder.add(Path(argument))
            if not Path(argument).is_dir() and not argument.endswith(TYPES):
                raise UserError(f"--text {argument}: unknown file type; known are {SHOWN_TYPES}")
        self._files, self._left_out = known_files(finder)
        if not self._files:
            found = f" (left out: {self._left_out[0].name}, {self._left_out[0].reason})" if self._left_out else ""
            raise UserError(f"--text {' '.join(paths)}: no file of a known type there{found}; give {SHOWN_TYPES} files")

    def records(self) -> Iterator[Document | Skipped]:
        yield from self._left_out
        yield from files_records(self._files, self.text_key)

    def describe(self) -> dict[str, Any]:
        count, sha256 = len(self._files), listing_sha256(self._files)
        return {"kind": "text", "files": count, "files_sha256": sha256, "text_key": self.text_key}


def known_files(finder: FileFinder) -> tuple[list[Named], list[Skipped]]:
    """(the files of a known type, all that is left out)."""
    known = [file for file in finder.files if file.path.name.endswith(TYPES)]
    others = [Skipped(file.name, "unknown file type") for file in finder.files if not file.path.name.endswith(TYPES)]
    return known, [*others, *finder.left_out]


def files_records(files: list[Named], text_key: str) -> Iterator[Document | Skipped]:
    """All documents of files, in order; of large ones that are packed or tables, several are read at once."""
    works = ((_apart(file), partial(file_records, file, text_key)) for file in files)
    yield from in_turn(works, AT_ONCE)


def _apart(file: Named) -> bool:
    return file.size >= LARGE_BYTES and file.path.name.endswith((*PACKED[1:], ".parquet", ".arrow"))


def file_records(file: Named, text_key: str) -> Iterator[Document | Skipped]:
    """All documents of one file; what cannot be read of it is one `Skipped`, and so is one that holds no row.

    UserError alone where the file was cut or removed since it was found.
    """
    record = None
    for record in _records(file, text_key):
        yield record
    if record is None:
        yield Skipped(file.name, "empty")


def _records(file: Named, text_key: str) -> Iterator[Document | Skipped]:
    name, path, size = file
    try:
        if is_pointer(path):
            yield Skipped(name, POINTER)
            return
        with seen(path, size) as stream:
            if path.name.endswith(PLAIN):
                yield from _sections(name, stream)
            elif path.name.endswith(".parquet"):
                yield from parquet_rows(name, stream, text_key)
            elif path.name.endswith(".arrow"):
                yield from arrow_rows(name, stream, text_key)
            else:
                yield from _packed_rows(name, stream, path.name, text_key)
    except OSError as error:
        yield Skipped(name, "truncated file" if "runcated" in str(error) else "unreadable file")


def _packed_rows(name: str, packed: BinaryIO, file_name: str, text_key: str) -> Iterator[Document | Skipped]:
    import pyarrow

    compression = {".gz": "gzip", ".zst": "zstd"}.get(Path(file_name).suffix)
    # An open file rather than its name, which pyarrow refuses where it is no UTF-8; pyarrow reports a cut stream.
    with io.BufferedReader(pyarrow.input_stream(packed, compression=compression)) as stream:
        if file_name.endswith(JSON):
            yield from json_rows(name, stream, text_key)
        else:
            yield from csv_rows(name, stream, text_key, "\t" if ".tsv" in Path(file_name).suffixes[-2:] else ",")


def _sections(name: str, stream: BinaryIO) -> Iterator[Document | Skipped]:
    section: list[bytes] = []
    size = index = 0
    for number, line in enumerate(lines(stream)):
        if line is None:
            yield Skipped(f"{name}:{number + 1}", "line over 10 MB")
            continue
        if section and size + len(line) > SECTION_BYTES:
            yield Document(name, b"".join(section), score(name, index))
            section, size, index = [], 0, index + 1
        section.append(line)
        size += len(line)
    if section or stream.tell() == 0:
        yield Document(name, b"".join(section), score(name, index))
