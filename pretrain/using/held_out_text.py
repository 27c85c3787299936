"""The held-out split of a checkpoint's run, and its whole documents as text."""

from itertools import pairwise
from pathlib import Path

from model.errors import UserError
from pretrain.checkpoint.load import tokenizer_of
from pretrain.checkpoint.read import Checkpoint
from pretrain.data.dataset import TokenDataset
from pretrain.data.manifest import load_manifest
from pretrain.data.tokens import Tokens, document_starts

DOCUMENTS, CHARACTERS = 1000, 2_000_000
"""At most so many documents are read, and none after so many characters."""


def held_out_split(checkpoint: Checkpoint) -> TokenDataset | None:
    """The split as the run reads it; None when data.path no longer holds the run's corpus, whole and readable."""
    config = checkpoint.config
    try:
        dataset = TokenDataset(config.data.path, "val", config.train.seq_len, config.data.packing, config.run.seed)
    except UserError:
        return None
    return dataset if dataset.fingerprint == checkpoint.manifest.data_fingerprint else None


def held_out_documents(checkpoint: Checkpoint) -> list[str] | None:
    """The first held-out documents, decoded from their tokens; None when there is no `held_out_split`."""
    if held_out_split(checkpoint) is None:
        return None
    folder, tokenizer = Path(checkpoint.config.data.path), tokenizer_of(checkpoint)
    manifest = load_manifest(folder)
    tokens, starts = Tokens(folder, manifest, "val"), document_starts(folder, manifest, "val")
    documents: list[str] = []
    left = CHARACTERS
    for start, stop in pairwise(starts[: DOCUMENTS + 1]):
        documents.append(tokenizer.decode(tokens.read(int(start), int(stop - start)).tolist()))
        left -= len(documents[-1])
        if left < 0:
            break
    return documents
