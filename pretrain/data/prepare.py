"""Text to a tokenizer, token shards and a manifest."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from model.errors import UserError
from model.hf.kept import MODEL
from model.hf.staging import writing
from model.hf.tokenizer import export_obstacle
from model.lfs import refuse_pointer
from pretrain.data.blocks import BLOCKS, blocks_json
from pretrain.data.documents import SkipLog, Source, Text, readable
from pretrain.data.encode import Encoder
from pretrain.data.manifest import MANIFEST, Manifest, TokenizerEntry, load_manifest, read_manifest
from pretrain.data.progress import Progress
from pretrain.data.shards import SHARD_TOKENS
from pretrain.data.staging import commit, staging
from pretrain.data.survey import Division, Survey, division, survey
from pretrain.data.tokenizer import SentencePieceTokenizer, Tokenizer, open_tokenizer, train_tokenizer
from pretrain.data.unfinished import Unfinished, take_up
from pretrain.machine.files import write_synced

LARGEST_UINT16_VOCAB = 1 << 16


@dataclass(frozen=True)
class PrepareOptions:
    """What to make of a source, and where."""

    out: Path
    vocab_size: int = 32000
    """Pieces of the tokenizer to train; without effect when `tokenizer` is given."""
    tokenizer: Path | None = None
    """A SentencePiece model, a tokenizer.json, or a folder with one, to use instead of training one."""
    val_fraction: float = 0.05
    """Share of the documents that is held out."""
    max_tokens: int | None = None
    """Stop after about so many tokens, training and held-out ones together."""
    overwrite: bool = False
    """Replace a corpus that was made from something else."""
    shard_tokens: int = SHARD_TOKENS

    def recorded(self) -> dict[str, Any]:
        """The part of the options that decides the result."""
        return {
            "vocab_size": None if self.tokenizer else self.vocab_size,
            "tokenizer_sha256": _identity(open_tokenizer(self.tokenizer)) if self.tokenizer else None,
            "val_fraction": self.val_fraction,
            "max_tokens": self.max_tokens,
            "shard_tokens": self.shard_tokens,
        }

    def quotas(self) -> dict[str, float]:
        """Tokens wanted in each split."""
        if self.max_tokens is None:
            return {"train": float("inf"), "val": float("inf")}
        held_out = max(1.0, self.max_tokens * self.val_fraction)
        return {"train": max(1.0, self.max_tokens - held_out), "val": held_out}


def prepare(source: Source, options: PrepareOptions, say: Callable[[str], None]) -> Manifest:
    """Prepare `source` into `options.out`, unless the folder holds exactly that already.

    The text is read twice: for the tokenizer's sample and to see that no split will be empty, then to encode it. The
    manifest comes last: a killed run leaves none, and the same command goes on after the last shard that was finished,
    to the very bytes of an undisturbed run. UserError for every bad input.
    """
    made_of = {"source": source.describe(), "options": options.recorded()}
    if (found_there := existing(options.out, options.overwrite, made_of, say)) is not None:
        return found_there
    given = open_tokenizer(options.tokenizer) if options.tokenizer else None
    if given:
        if given.path.resolve().parent == options.out.resolve() and not (options.out / MANIFEST).exists():
            raise UserError(
                f"--out {options.out}: holds the --tokenizer, whose files the corpus would replace; choose another"
            )
        _warn(given, say)
    with staging(options.out) as folder:
        so_far = take_up(folder, made_of)
        if so_far is not None:
            say(f"{folder}: going on after {so_far.shards} finished shards and {so_far.bytes / 1e6:.1f} MB of text")
        else:
            so_far = _begin(source, options, given, made_of, folder, say)
        divided = Division(options.val_fraction, so_far.bound, so_far.by_position)
        tokenizer = given or SentencePieceTokenizer(folder / MODEL)
        dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= LARGEST_UINT16_VOCAB else "uint32"
        stored = np.dtype(dtype).newbyteorder("<")
        encoder = Encoder(folder, tokenizer, stored, options.shard_tokens, options.quotas(), so_far)
        with Progress("encoding", so_far.total, so_far.bytes) as progress:
            splits = encoder.run(source.records(), divided, progress)
        manifest = Manifest(
            format="sparlow-tokens",
            format_version=1 if tokenizer.file_name == MODEL else 2,
            source=made_of["source"],
            options=made_of["options"],
            dtype=dtype,
            tokenizer=TokenizerEntry(
                file=tokenizer.file_name,
                sha256=tokenizer.sha256,
                vocab_size=tokenizer.vocab_size,
                bos=tokenizer.bos_id,
                eos=tokenizer.eos_id,
                pad=tokenizer.pad_id,
            ),
            train=splits["train"],
            val=splits["val"],
            skipped=encoder.log.counts,
            skipped_first=encoder.log.first,
        )
        blocks = blocks_json(manifest.to_json().encode(), encoder.blocks)
        write_synced(folder / BLOCKS, blocks.encode())
        commit(folder, options.out, manifest.to_json())
    return manifest


def _begin(
    source: Source,
    options: PrepareOptions,
    given: Tokenizer | None,
    made_of: dict[str, Any],
    folder: Path,
    say: Callable[[str], None],
) -> Unfinished:
    """Look at the source, train a tokenizer where none is given, and write both down."""
    found = _look(source, needs_sample=given is None)
    divided = division(found, options.val_fraction)
    tokenizer = given or SentencePieceTokenizer(folder / MODEL, _train(found, divided, options, say))
    begun = Unfinished(
        format="sparlow-unfinished",
        format_version=1,
        made_of=made_of,
        bound=divided.bound,
        by_position=divided.by_position,
        total=found.bytes if found.complete and options.max_tokens is None else None,
        kept={name: write_synced(folder / name, content) for name, content in tokenizer.kept.items()},
    )
    begun.write(folder)
    return begun


def _identity(tokenizer: Tokenizer) -> str:
    """A hash of all that decides the ids of a document: of the model itself where that is all, as in SentencePiece."""
    if tokenizer.file_name == MODEL:
        return tokenizer.sha256
    return hashlib.sha256(repr(tokenizer.identity).encode()).hexdigest()


def _warn(tokenizer: Tokenizer, say: Callable[[str], None]) -> None:
    """Say what a given tokenizer cannot do and what its reader had to choose, before hours are spent on it."""
    path = tokenizer.path
    for note in tokenizer.notes:
        say(note)
    if lost := tokenizer.losses():
        say(f"warning: --tokenizer {path}: text loses its {', '.join(lost)} when it is encoded")
    if tokenizer.file_name == MODEL and (reason := export_obstacle(path)):
        say(f"warning: --tokenizer {path}: training works, but sparlow export will refuse the model, since {reason}")


def existing(out: Path, overwrite: bool, made_of: dict[str, Any], say: Callable[[str], None]) -> Manifest | None:
    """The manifest of a finished corpus made of the same; UserError when the folder holds anything else."""
    with writing(f"--out {out}"):  # where no such name can be
        if overwrite or not (out / MANIFEST).exists():
            return None
    try:
        manifest = read_manifest(out)
    except UserError as error:
        refuse_pointer(out / MANIFEST)
        raise UserError(
            f"--out {out}: its {MANIFEST} is of another kind; choose another folder or --overwrite"
        ) from error
    if {"source": manifest.source, "options": manifest.options} != made_of:
        raise UserError(f"--out {out}: holds a corpus made otherwise; choose another folder or --overwrite")
    try:
        load_manifest(out)
    except UserError as error:
        say(f"preparing {out} anew: {error}")
        return None
    say(f"{out} is already prepared from the same text with the same options; nothing to do")
    return manifest


def _look(source: Source, needs_sample: bool) -> Survey:
    """Read the source once: all of it when that is cheap, else as much as the tokenizer's sample needs."""
    if not (needs_sample or source.complete_survey):
        return Survey(complete=False)
    log = SkipLog()
    with Progress("reading") as progress:
        found = survey(_counted(readable(source.records(), log), progress), whole=source.complete_survey)
    if found.documents == 0:
        raise UserError(f"no usable document in the text (left out: {log}); give other text or another --text-key")
    return found


def _counted(texts: Iterable[Text], progress: Progress) -> Iterator[Text]:
    for text in texts:
        yield text
        progress.advance(len(text.text))


def _train(found: Survey, divided: Division, options: PrepareOptions, say: Callable[[str], None]) -> bytes:
    sample = [text for split, text in divided.parts(found.sample) if split == "train"]
    say(f"training a tokenizer of {options.vocab_size} pieces on {sum(map(len, sample)) / 1e6:.1f} MB")
    return train_tokenizer(sample, options.vocab_size)
