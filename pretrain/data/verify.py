"""Comparing a prepared corpus with its hashes: a part of it at every start, all of it on request."""

import hashlib
import random
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from model.errors import UserError
from pretrain.data.blocks import BLOCK_BYTES, BLOCKS, BlockHasher, blocks_json, read_blocks
from pretrain.data.manifest import AGAIN, MANIFEST, FileEntry, load_manifest
from pretrain.data.sound import SoundFiles
from pretrain.machine.files import replace_text

SAMPLED_BLOCKS = 64
"""Blocks of 1 MiB compared at a start, where they have hashes: a tenth of a second."""
WHOLE_BYTES = 2 * 10**9
"""Bytes of whole files compared at a start, where blocks have no hashes: two seconds, from a disk that is as fast."""


def check_at_start(path: str | PathLike[str]) -> str | None:
    """Compare a part of a corpus before a run or an evaluation reads it; UserError names a file that changed.

    With hashes of its blocks that is a sample, since each block is compared when it is first read as well. Without
    them, in a folder of an earlier version, it is whole files, up to WHOLE_BYTES, others at each start. Returns what to
    say of that.
    """
    folder = Path(path)
    manifest, blocks = load_manifest(folder), read_blocks(folder)
    entries, draw = manifest.all_files, random.Random()
    if blocks and all(blocks.digests(entry.name, entry.bytes) is not None for entry in entries):
        files = SoundFiles(folder, entries, blocks)
        every = [(i, first) for i, entry in enumerate(entries) for first in range(0, entry.bytes, blocks.block_bytes)]
        for index, first in sorted(draw.sample(every, min(SAMPLED_BLOCKS, len(every)))):
            files.read(index, first, 1)
        return None
    chosen, size = list[FileEntry](), 0
    # Smallest first, as one wrong start of a document spoils more than one wrong token; of equal ones any.
    for entry in sorted(entries, key=lambda entry: (entry.bytes, draw.random())):
        if size + entry.bytes <= WHOLE_BYTES or not chosen:
            chosen.append(entry)
            size += entry.bytes
    for entry in chosen:
        _compare(folder, entry)
    total = sum(entry.bytes for entry in entries)
    return (
        f"{folder} has no hashes of its blocks (an earlier version prepared it): compared {size / 1e9:.2f} of "
        f"{total / 1e9:.2f} GB with the hashes of whole files; sparlow prepare --verify {folder} compares all of it, "
        "and writes those of blocks, with which each is compared when it is first read"
    )


def verify(path: str | PathLike[str]) -> str:
    """Compare every byte of a corpus, and write the hashes of its blocks where they are missing or damaged.

    Returns what was done; UserError names the first file that changed.
    """
    folder = Path(path)
    manifest = load_manifest(folder)
    if tokenizer := manifest.tokenizer:
        _compare(folder, FileEntry(name=tokenizer.file, bytes=1, sha256=tokenizer.sha256, tokens=0))
    digests = [(entry.name, _compare(folder, entry)) for entry in manifest.all_files]
    total = sum(entry.bytes for entry in manifest.all_files)
    said = f"{folder} is as it was written: {len(digests) + (tokenizer is not None)} files, {total / 1e9:.2f} GB"
    text = blocks_json((folder / MANIFEST).read_bytes(), digests)
    try:
        if (folder / BLOCKS).exists() and (folder / BLOCKS).read_bytes() == text.encode():
            return said
        replace_text(folder / BLOCKS, text)
    except OSError as error:
        return f"{said}; the hashes of its blocks could not be written ({error.strerror})"
    return f"{said}; wrote the hashes of its blocks ({BLOCKS})"


def verify_split(path: str | PathLike[str], split: str) -> None:
    """Compare every byte of one split; UserError names the first file that changed."""
    for entry in load_manifest(path).split(split).all_files:
        _compare(Path(path), entry)


def _compare(folder: Path, entry: FileEntry) -> str:
    """The digests of a file's blocks; UserError where its sha256 is another one than the manifest's."""
    path, whole, blocks = folder / entry.name, hashlib.sha256(), BlockHasher()
    try:
        for data in _chunks(path):
            whole.update(data)
            blocks.update(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
    if whole.hexdigest() != entry.sha256:
        raise UserError(f"{path}: its contents changed since it was written; {AGAIN}")
    return blocks.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(BLOCK_BYTES):
            yield data
