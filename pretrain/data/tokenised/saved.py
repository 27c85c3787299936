"""Data sets that `datasets` has saved to disk (`save_to_disk`), with a column of ids; a row is a document."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError
from pretrain.data.tokenised.piece import Piece, Split, TokenFile

ROWS = 1000
"""Rows read at a time."""
SPLITS: dict[str, Split] = {"train": "train"}
SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "val")


class SavedSplit(TokenFile):
    """One `datasets.Dataset`, whose column `key` has a list of ids in each row."""

    form, knows_documents = "datasets folder", True

    def __init__(self, dataset: Any, folder: Path, name: str, split: Split | None, key: str):
        import pyarrow

        self.name, self.split, self._dataset, self._key, self._folder = name, split, dataset, key, folder
        self.paths = tuple(sorted(Path(file["filename"]) for file in dataset.cache_files))
        if key not in dataset.column_names:
            raise UserError(
                f"--token-key {key}: {folder} has no such column{f' in {name}' if name else ''}; it has "
                f"{', '.join(dataset.column_names)}"
            )
        kind = dataset.features.arrow_schema.field(key).type
        lists = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
        if not any(is_list(kind) for is_list in lists) or not pyarrow.types.is_integer(kind.value_type):
            raise UserError(f"--token-key {key}: this column of {folder} holds {kind}, expected lists of integers")
        if not len(dataset):
            raise UserError(f"--tokens {folder}: holds no rows{f' in {name}' if name else ''}")
        if "attention_mask" in dataset.column_names:
            self.notes = ("its attention_mask is not read: padding in a row, if there is any, is trained on",)
        self.n_tokens = 0

    def part(self, piece: Piece) -> float:
        """Share of the rows."""
        return len(piece.starts) / len(self._dataset)

    def pieces(self) -> Iterator[Piece]:
        """Whole rows, ROWS at a time; an empty one is none."""
        import pyarrow

        rows = self._dataset.select_columns([self._key]).with_format("arrow")
        try:
            for table in rows.iter(ROWS):
                column = table.column(self._key)
                if column.null_count or column.combine_chunks().flatten().null_count:
                    raise UserError(f"--tokens {self._folder}: a row of {self._key} has nothing in place of ids")
                lengths = pyarrow.compute.list_value_length(column).to_numpy().astype(np.int64)
                ids = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.int64)
                starts = (np.cumsum(lengths) - lengths)[lengths > 0]
                if len(starts):
                    yield Piece(ids, starts)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"--tokens {self._folder}: cannot be read ({str(error).splitlines()[0]:.200})") from None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def open_saved(folder: Path, key: str) -> tuple[list[SavedSplit], list[str]]:
    """The splits of a folder that train or are held out, and the names of others, which are left out."""
    import datasets
    import pyarrow.compute  # noqa: F401 - for `pieces`

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # of any kind, from a folder of strangers
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--tokens {folder}: datasets cannot read it ({reason:.200})") from None
    if isinstance(loaded, datasets.Dataset):
        return [SavedSplit(loaded, folder, "", None, key)], []
    taken = {name: split for name, split in SPLITS.items() if name in loaded}
    if not taken and len(loaded) == 1:
        (name,) = loaded
        return [SavedSplit(loaded[name], folder, name, None, key)], []
    if "train" not in taken:
        raise UserError(f"--tokens {folder}: has no split train; it has {', '.join(map(str, loaded)) or 'none'}")
    files = [SavedSplit(loaded[name], folder, name, split, key) for name, split in taken.items()]
    return files, [str(name) for name in loaded if name not in taken]
