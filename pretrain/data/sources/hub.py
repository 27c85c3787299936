"""A data set of the Hugging Face hub."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from model.errors import UserError
from pretrain.data.documents import Document, Skipped
from pretrain.data.sources.rows import keyed_document


class HubSource:
    """Rows of one split; held out are those of a split named "validation", or a hash of the row index chooses them."""

    complete_survey = False

    def __init__(self, name: str, config: str | None, split: str, stream: bool, text_key: str, val_fraction: float):
        import datasets

        datasets.disable_progress_bars()
        self._description = {"kind": "hf", "id": name, "config": config, "split": split, "text_key": text_key}
        self.name, self.text_key, self._every = name, text_key, max(1, round(1 / val_fraction))
        try:
            splits = datasets.load_dataset(name, config, streaming=stream)
        except ConnectionError as error:
            raise UserError(f"--hf {name}: the hub cannot be reached; check the network or use --text") from error
        except (FileNotFoundError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--hf {name}: cannot be loaded ({reason}); check the id and --config") from error
        if split not in splits:
            raise UserError(f"--split {split}: {name} has no such split; it has {', '.join(map(str, splits))}")
        self._train = splits[split]
        self._validation = splits.get("validation") if split != "validation" else None
        if self._train.column_names is not None and text_key not in self._train.column_names:
            columns = ", ".join(self._train.column_names)
            raise UserError(f"--text-key {text_key}: {name} has no such column; it has {columns}")

    def records(self) -> Iterator[Document | Skipped]:
        try:
            validation = None if self._validation is None else self._rows(self._validation, "validation")
            yield from interleaved(self._rows(self._train, "train"), validation, self._every)
        except ConnectionError as error:
            raise UserError(f"--hf {self.name}: the connection was lost; run the same command again") from error

    def describe(self) -> dict[str, Any]:
        return self._description

    def _rows(self, rows: Any, split: str) -> Iterator[Document | Skipped]:
        for index, row in enumerate(rows):
            yield keyed_document("row", index, row, self.text_key, f"{split}:{index}")


def interleaved(
    train: Iterator[Document | Skipped], validation: Iterator[Document | Skipped] | None, every: int
) -> Iterator[Document | Skipped]:
    """Both splits, marked by score; held-out rows come early and regularly, so that reading may stop anywhere.

    Without `validation`, `train` as it is.
    """
    if validation is None:
        yield from train
        return
    held_out = (_scored(record, 0.0) for record in validation)
    for index, record in enumerate(train):
        if index % every == 0:
            yield from islice(held_out, 1)
        yield _scored(record, 1.0)
    yield from held_out


def _scored(record: Document | Skipped, value: float) -> Document | Skipped:
    return record._replace(score=value) if isinstance(record, Document) else record
