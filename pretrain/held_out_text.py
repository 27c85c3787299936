"""Whole held-out documents of a run, as text."""

from itertools import pairwise
from pathlib import Path

from pretrain.checkpoint.load import tokenizer_of
from pretrain.checkpoint.read import Checkpoint
from pretrain.data.dataset import TokenDataset
from pretrain.data.manifest import load_manifest
from pretrain.data.tokens import Tokens, document_starts

DOCUMENTS, CHARACTERS = 1000, 2_000_000
"""At most so many documents are read, and none after so many characters."""


def held_out_documents(checkpoint: Checkpoint) -> list[str] | None:
    """The first held-out documents, decoded from their tokens; None when the run's corpus is no longer there."""
    config, tokenizer = checkpoint.config, tokenizer_of(checkpoint)
    folder = Path(config.data.path)
    if not folder.exists():
        return None
    dataset = TokenDataset(folder, "val", config.train.seq_len, "concat", 0)
    if dataset.fingerprint != checkpoint.manifest.data_fingerprint:
        return None
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
