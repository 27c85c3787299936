"""A local folder laid out as a data set of the Hugging Face hub, read without `datasets`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.errors import UserError
from pretrain.data.documents import Document, Skipped, printable
from pretrain.data.sources.files import FileFinder, Named, listing_sha256
from pretrain.data.sources.hub import interleaved
from pretrain.data.sources.rows import NO_TEXT
from pretrain.data.sources.text import SHOWN_TYPES, files_records, known_files

DESCRIPTIONS = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes beside the .arrow files of a data set saved to disk."""

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}


class FolderSource:
    """A file, or every file of a known type below a folder, read as `--text` reads it: text stays what it is in there.

    The name of a file, or else of a folder around it, says which split it belongs to, by the hub's words for splits;
    all others belong to "train". Where there is a "validation" split, that is held out. Text about the data
    set (its card, README.md), what `datasets` keeps beside .arrow files, and files of other splits are left out.
    """

    complete_survey = True

    def __init__(self, folder: Path, config: str | None, split: str, text_key: str, val_fraction: float):
        if config is not None:
            raise UserError(
                f"--config {config}: a local folder has none; leave it out and give the folder of its files to --hf"
            )
        self.text_key, self._every = text_key, max(1, round(1 / val_fraction))
        finder = FileFinder("--hf")
        finder.add(folder)
        known, self._left_out = known_files(finder)
        splits: dict[str, list[Named]] = {}
        saved = any(file.name.endswith(".arrow") for file in known)
        for file in known:
            if reason := _no_text(file.name, saved):
                self._left_out.append(Skipped(file.name, reason))
            else:
                splits.setdefault(_split_of(file.name), []).append(file)
        if not splits:
            raise UserError(f"--hf {folder}: no file of a known type there; known are {SHOWN_TYPES}")
        if split not in splits:
            raise UserError(f"--split {split}: {folder} has no such split; it has {', '.join(sorted(splits))}")
        self._train = splits.pop(split)
        self._validation = splits.pop("validation", None)
        self._left_out += [Skipped(file.name, f"of split {other}") for other in splits for file in splits[other]]
        self._description = {"kind": "hf", "config": None, "split": split, "text_key": text_key}
        self._require_key(folder)

    def records(self) -> Iterator[Document | Skipped]:
        yield from self._left_out
        validation = None if self._validation is None else self._rows(self._validation)
        yield from interleaved(self._rows(self._train), validation, self._every)

    def describe(self) -> dict[str, Any]:
        used = [*self._train, *(self._validation or [])]
        return {**self._description, "id": f"local {listing_sha256(used)}", "files": len(used)}

    def _rows(self, files: list[Named]) -> Iterator[Document | Skipped]:
        yield from files_records(files, self.text_key)

    def _require_key(self, folder: Path) -> None:
        """Refuse a key that no row has, which takes one row where the key is right."""
        first = None
        for record in self._rows(self._train):
            if isinstance(record, Document) or record.reason != NO_TEXT:
                return
            first = first or record.name
        if first is not None:
            raise UserError(
                f"--text-key {self.text_key}: no row of {folder} has text there; look at {printable(first)}"
            )


def _no_text(name: str, saved: bool) -> str | None:
    """Why a file of a known type is none of the data set's, `saved` when it has .arrow files; None when it is."""
    last = name.rpartition("/")[2]
    if name == "README.md":
        return "card of the data set"
    if saved and last in DESCRIPTIONS:
        return "description of the data set"
    return "cache of datasets" if last.startswith("cache-") and last.endswith(".arrow") else None


def _split_of(name: str) -> str:
    for part in reversed(name.split("/")):
        for word in re.split(r"[^A-Za-z]+", part):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return "train"
