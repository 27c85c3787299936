"""The user's own files and folders: plain text, JSON lines and Parquet."""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from model.errors import UserError
from pretrain.data.documents import BOM, MAX_LINE, Document, Skipped, score

PLAIN = (".txt", ".md", ".py")
TYPES = (*PLAIN, ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SECTION_BYTES = 1 << 16


class TextSource:
    """Files named by the user, and every file of a known type below the folders named by the user.

    A plain file is one document; one longer than 64 KiB becomes several, cut at line ends, so that a file of any size
    is read in little memory and a single book can be divided into training and held-out text. A row of a .jsonl or
    .parquet file is one document: the string under `text_key`. Hidden files and folders are not visited.
    """

    complete_survey = True

    def __init__(self, paths: list[str], text_key: str = "text") -> None:
        self.text_key = text_key
        self._files: list[tuple[str, Path]] = []
        self._others: list[str] = []
        for argument in paths:
            self._add(Path(argument))
        if not self._files:
            raise UserError(f"--text {' '.join(paths)}: no file of a known type there; give {' '.join(TYPES)} files")

    def records(self) -> Iterator[Document | Skipped]:
        for name in self._others:
            yield Skipped(name, "unknown file type")
        for name, path in self._files:
            try:
                yield from self._read(name, path)
            except OSError as error:
                broken = "truncated file" if "runcated" in str(error) else "unreadable file"
                yield Skipped(name, broken)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "text",
            "files": len(self._files),
            "files_sha256": listing_sha256(self._files),
            "text_key": self.text_key,
        }

    def _add(self, argument: Path) -> None:
        if argument.is_dir():
            for name, path in files_below(argument):
                if path.name.endswith(TYPES):
                    self._files.append((name, path))
                else:
                    self._others.append(name)
        elif not argument.exists():
            raise UserError(f"--text {argument}: no such file or folder")
        elif not argument.name.endswith(TYPES):
            raise UserError(f"--text {argument}: unknown file type; known are {' '.join(TYPES)}")
        else:
            self._files.append((argument.name, argument))

    def _read(self, name: str, path: Path) -> Iterator[Document | Skipped]:
        if path.name.endswith(PLAIN):
            with path.open("rb") as stream:
                yield from _sections(name, stream)
        elif path.name.endswith(".parquet"):
            yield from self._parquet_rows(name, path)
        else:
            import pyarrow

            # pyarrow decompresses .gz and .zst by the file's name, and reports a truncated stream.
            with io.BufferedReader(pyarrow.input_stream(str(path))) as stream:
                yield from self._json_rows(name, stream)

    def _json_rows(self, name: str, stream: BinaryIO) -> Iterator[Document | Skipped]:
        for row, line in enumerate(_lines(stream)):
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
                yield row_document(name, row, value.get(self.text_key) if isinstance(value, dict) else None, place)

    def _parquet_rows(self, name: str, path: Path) -> Iterator[Document | Skipped]:
        import pyarrow
        import pyarrow.parquet

        row = 0
        try:
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024, columns=[self.text_key]):
                values = batch.column(0).to_pylist() if batch.num_columns else [None] * batch.num_rows
                for value in values:
                    yield row_document(name, row, value, f"{name}:{row + 1}")
                    row += 1
        except pyarrow.ArrowException:
            yield Skipped(name, "unreadable file")


def row_document(name: str, row: int, value: object, place: str) -> Document | Skipped:
    """One row of a table as a document; a surrogate that is no character becomes invalid UTF-8, to be counted."""
    if not isinstance(value, str):
        return Skipped(place, "no text under the key")
    return Document(place, value.encode("utf-8", "surrogatepass"), score(name, row))


def listing_sha256(files: list[tuple[str, Path]]) -> str:
    """A hash of the names and sizes of files: different when a corpus is exchanged, the same wherever it lies."""
    listing = "".join(f"{name}\0{path.stat().st_size}\n" for name, path in files)
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def files_below(folder: Path) -> list[tuple[str, Path]]:
    """(path relative to `folder`, path), sorted, without hidden ones."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)


def _sections(name: str, stream: BinaryIO) -> Iterator[Document | Skipped]:
    section: list[bytes] = []
    size = index = 0
    for number, line in enumerate(_lines(stream)):
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


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines with their ends, in bounded memory; None stands for one that is too long."""
    while line := stream.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE)
        yield None
