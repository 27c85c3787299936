"""The tokenizer of an imported checkpoint: the folder's own, another file's, or none."""

from pathlib import Path

from model.errors import UserError
from model.hf.kept import JSON, MODEL
from pretrain.data.tokenizer import Tokenizer, open_tokenizer

NONE = "none"
"""What --tokenizer takes for a checkpoint without one."""


def read_tokenizer(source: Path, given: str | None, rows: int) -> tuple[Tokenizer | None, list[str]]:
    """The tokenizer that the checkpoint keeps, and what there is to say of it.

    UserError for one with more ids than the model has `rows`; it may have fewer, as embeddings are padded.
    """
    if given == NONE:
        return None, []
    if given is None and not any((source / name).is_file() for name in (MODEL, JSON)):
        return None, [
            f"{source} has no {MODEL} and no {JSON}: the checkpoint has no tokenizer; --tokenizer gives it one"
        ]
    tokenizer = open_tokenizer(given or source)
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{tokenizer.path}: a tokenizer of {tokenizer.vocab_size:,} ids, but config.json has vocab_size {rows:,}; "
            f"give the model's own with --tokenizer FILE, or --tokenizer {NONE}"
        )
    padding = rows - tokenizer.vocab_size
    return tokenizer, [f"{padding:,} rows of the embedding are of no token of {tokenizer.path}"] if padding else []
