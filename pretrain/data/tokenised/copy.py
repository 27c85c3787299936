"""`sparlow prepare --tokens`: ids that others have made to token shards and a manifest."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError
from model.hf.kept import MODEL
from pretrain.data.blocks import BLOCKS, blocks_json
from pretrain.data.manifest import SPLITS, Manifest, SplitEntry, TokenizerEntry
from pretrain.data.prepare import LARGEST_UINT16_VOCAB, existing
from pretrain.data.progress import Progress
from pretrain.data.shards import SHARD_TOKENS
from pretrain.data.staging import commit, staging
from pretrain.data.tokenised.opening import Reading, open_files
from pretrain.data.tokenised.piece import PIECE_TOKENS, Piece, Split, TokenFile
from pretrain.data.tokenised.spelling import Spelling
from pretrain.data.tokenised.write import PieceWriter
from pretrain.data.tokenizer import Tokenizer, open_tokenizer
from pretrain.data.unfinished import take_up
from pretrain.machine.fault import fault_point
from pretrain.machine.files import write_synced

CHUNK = 1 << 22
"""Bytes hashed at a time."""


@dataclass(frozen=True)
class CopyOptions:
    """What to make of ids, and where."""

    path: Path
    out: Path
    reading: Reading
    tokenizer: Path | None = None
    """The tokenizer that made the ids; without it they are ids only, with no bits per byte, samples or prompts."""
    vocab_size: int | None = None
    """Number of ids; needed without a tokenizer."""
    val_fraction: float = 0.05
    """Share that is held out where no file or split is for that."""
    overwrite: bool = False
    """Replace a corpus that was made from something else."""
    shard_tokens: int = SHARD_TOKENS


def copy_tokens(options: CopyOptions, say: Callable[[str], None]) -> Manifest:
    """Copy the ids of `options.path` into `options.out`, unless the folder holds exactly that already.

    Held out is what its name says, or else of every 1 / val_fraction documents the first; where nobody knows where a
    document begins, the end. UserError for ids beyond the vocabulary, and every other bad input; nothing is left then.
    """
    files, left_out = open_files(options.path, options.reading)
    tokenizer = open_tokenizer(options.tokenizer) if options.tokenizer else None
    vocab_size = tokenizer.vocab_size if tokenizer else options.vocab_size
    if vocab_size is None:
        raise UserError("--tokens: give the tokenizer that made the ids (--tokenizer FILE), or --vocab-size N")
    notes = [f"{options.path}: {what} is left out" for what in left_out]
    notes += dict.fromkeys(f"{options.path}: {note}" for file in files for note in file.notes)
    for note in notes:
        say(note)
    made_of = {"source": _describe(files), "options": _recorded(options, tokenizer)}
    if (found := existing(options.out, options.overwrite, made_of, say)) is not None:
        return found
    spelling = Spelling(tokenizer) if tokenizer else None
    if spelling and spelling.note:
        say(f"warning: --tokenizer {options.tokenizer}: {spelling.note}")
    dtype = np.dtype("uint16" if vocab_size <= LARGEST_UINT16_VOCAB else "uint32").newbyteorder("<")
    with staging(options.out) as folder:
        take_up(folder, made_of)  # empties it: copying is quick and begins anew
        for name, content in (tokenizer.kept if tokenizer else {}).items():
            write_synced(folder / name, content)
        writers = {split: PieceWriter(folder, split, dtype, options.shard_tokens, bool(spelling)) for split in SPLITS}
        with Progress("copying", sum(_bytes(file) for file in files)) as progress:
            for file in files:
                done = 0
                for split, piece in divided(file, options.val_fraction):
                    _require_known(piece, file, vocab_size, done)
                    writers[split].add(piece, spelling.sizes(piece) if spelling else None)
                    done += len(piece.ids)
                    progress.advance(round(_bytes(file) * file.part(piece)))
                    fault_point("prepare_batch")
        manifest = _manifest(made_of, tokenizer, vocab_size, dtype.name, _entries(writers))
        digests = [pair for writer in writers.values() for pair in writer.blocks]
        blocks = blocks_json(manifest.to_json().encode(), digests)
        write_synced(folder / BLOCKS, blocks.encode())
        commit(folder, options.out, manifest.to_json())
    return manifest


def divided(file: TokenFile, val_fraction: float) -> Iterator[tuple[Split, Piece]]:
    """The pieces of a file, each for the split it belongs to."""
    if file.split:
        yield from ((file.split, piece) for piece in file.pieces())
    elif file.knows_documents:
        documents = 0
        for piece in file.pieces():
            count = np.arange(documents, documents + len(piece.starts))
            held_out = np.ceil((count + 1) * val_fraction) > np.ceil(count * val_fraction)
            documents += len(piece.starts)
            if held_out.any():
                yield "val", _select(piece, held_out)
            if not held_out.all():
                yield "train", _select(piece, ~held_out)
    else:
        left, start = file.n_tokens - max(1, round(file.n_tokens * val_fraction)), np.zeros(1, dtype=np.int64)
        for ids, _ in file.pieces():
            train, val = np.split(ids, [left])
            if len(train):
                yield "train", Piece(train, start)
            if len(val):
                yield "val", Piece(val, start)
            left = max(0, left - len(ids))


def _select(piece: Piece, chosen: np.ndarray) -> Piece:
    """Some documents of a piece."""
    lengths = np.diff(np.append(piece.starts, len(piece.ids)))
    kept = lengths[chosen]
    return Piece(piece.ids[np.repeat(chosen, lengths)], np.cumsum(kept) - kept)


def _require_known(piece: Piece, file: TokenFile, vocab_size: int, before: int) -> None:
    low, high = int(piece.ids.min()), int(piece.ids.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise UserError(
            f"--tokens {file.paths[-1]}: id {wrong} is beyond the vocabulary of {vocab_size} (among the ids from "
            f"{before:,} on); give the tokenizer or --vocab-size that made it, and of a flat file the right --dtype"
        )


def _entries(writers: dict[str, PieceWriter]) -> dict[str, SplitEntry]:
    for split, writer in writers.items():
        if not writer.documents:
            raise UserError(
                f"--val-fraction: nothing is left for split {split}; give more ids, another fraction, or files named "
                "train and val"
            )
    return {split: writer.close() for split, writer in writers.items()}


def _bytes(file: TokenFile) -> int:
    return sum(path.stat().st_size for path in file.paths)


def _describe(files: list[TokenFile]) -> dict[str, Any]:
    """What was read: names and contents, not where it lay."""
    entries = []
    with Progress("hashing", sum(_bytes(file) for file in files)) as progress:
        for file in files:
            hashes = [_sha256(path, progress) for path in file.paths]
            entries.append({"name": file.name, "split": file.split, "sha256": hashes})
    documents = "known" if all(file.knows_documents for file in files) else "unknown"
    return {"kind": "tokens", "form": files[0].form, "documents": documents, "files": entries}


def _sha256(path: Path, progress: Progress) -> str:
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                found.update(data)
                progress.advance(len(data))
    except OSError as error:
        raise UserError(f"--tokens {path}: cannot be read ({error.strerror})") from None
    return found.hexdigest()


def _recorded(options: CopyOptions, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The part of the options that decides the result."""
    identity = hashlib.sha256(repr(tokenizer.identity).encode()).hexdigest() if tokenizer else None
    return {
        "vocab_size": options.vocab_size,
        "tokenizer_identity": identity,
        "val_fraction": options.val_fraction,
        "shard_tokens": options.shard_tokens,
        "piece_tokens": PIECE_TOKENS,
        **vars(options.reading),
    }


def _manifest(
    made_of: dict[str, Any], tokenizer: Tokenizer | None, vocab_size: int, dtype: Any, entries: dict[str, SplitEntry]
) -> Manifest:
    entry = None
    if tokenizer:
        entry = TokenizerEntry(
            file=tokenizer.file_name,
            sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            bos=tokenizer.bos_id,
            eos=tokenizer.eos_id,
            pad=tokenizer.pad_id,
        )
    return Manifest(
        format="sparlow-tokens",
        format_version=1 if tokenizer and tokenizer.file_name == MODEL else 2,
        source=made_of["source"],
        options=made_of["options"],
        dtype=dtype,
        tokenizer=entry,
        vocab_size=None if tokenizer else vocab_size,
        train=entries["train"],
        val=entries["val"],
        skipped={},
        skipped_first={},
    )
