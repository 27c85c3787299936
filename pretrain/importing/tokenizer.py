"""The tokenizer of an imported checkpoint: the folder's own, another file, or none."""

from pathlib import Path

from model.errors import UserError
from pretrain.data.tokenizer import Tokenizer

NONE = "none"
"""What --tokenizer takes for a checkpoint without one."""


def require_fits(vocab_size: int, path: Path, rows: int) -> None:
    """UserError where a tokenizer has ids for which the model, with so many rows of the embedding, has none."""
    if vocab_size > rows:
        raise UserError(
            f"{path}: a tokenizer of {vocab_size:,} ids, but config.json has vocab_size {rows:,}; give the model's own "
            "with --tokenizer FILE, or --tokenizer none"
        )


def read_tokenizer(source: Path, given: str | None, rows: int) -> tuple[dict[str, bytes], str | None, list[str]]:
    """The files that the checkpoint keeps, by name, the name of the one with the vocabulary, and notes.

    UserError for one with more ids than the model has `rows`.
    """
    if given == NONE:
        return {}, None, []
    path = Path(given) if given else source / "tokenizer.model"
    tokenizer = Tokenizer(path)
    require_fits(tokenizer.vocab_size, path, rows)
    return {"tokenizer.model": path.read_bytes()}, "tokenizer.model", []
