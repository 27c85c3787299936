"""Hashes of a corpus block by block: with them, each block is compared when it is first read."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from model.schema import Frozen
from pretrain.data.manifest import MANIFEST

BLOCKS = "blocks.json"
BLOCK_BYTES = 1 << 20
DIGEST_BYTES = 16
"""Length of what is kept of a block's sha256: 3 MB of memory for 200 GB of tokens."""


class Blocks(Frozen):
    """The file beside the manifest. It is no part of it, so that a corpus of an earlier version can get one too."""

    format: Literal["sparlow-blocks"]
    format_version: Literal[1]
    manifest_sha256: str
    """Hash of the manifest that it belongs to."""
    block_bytes: int = Field(ge=1, le=1 << 30)
    files: dict[str, str]
    """By name, the first DIGEST_BYTES of the sha256 of every block, in hexadecimal digits, one after the other."""

    def digests(self, name: str, size: int) -> bytes | None:
        """The digests of a file of `size` bytes; None where they are not there or too few."""
        try:
            found = bytes.fromhex(self.files.get(name, ""))
        except ValueError:
            return None
        return found if len(found) == DIGEST_BYTES * -(-size // self.block_bytes) else None


class BlockHasher:
    """Digests of what is written or read from beginning to end."""

    def __init__(self) -> None:
        self._digests, self._block, self._filled = bytearray(), hashlib.sha256(), 0

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            part = view[: BLOCK_BYTES - self._filled]
            self._block.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._close_block()

    def hexdigest(self) -> str:
        """The digests so far, the last block being what there is of it."""
        if self._filled:
            self._close_block()
        return self._digests.hex()

    def _close_block(self) -> None:
        self._digests += self._block.digest()[:DIGEST_BYTES]
        self._block, self._filled = hashlib.sha256(), 0


def digest(block: bytes) -> bytes:
    """What `Blocks` holds of a block."""
    return hashlib.sha256(block).digest()[:DIGEST_BYTES]


def blocks_json(manifest: bytes, files: Iterable[tuple[str, str]]) -> str:
    """The text of the file beside `manifest`, from the names of files and their `BlockHasher.hexdigest`."""
    made = Blocks(
        format="sparlow-blocks",
        format_version=1,
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        block_bytes=BLOCK_BYTES,
        files=dict(files),
    )
    return made.model_dump_json(indent=1)


def read_blocks(folder: Path) -> Blocks | None:
    """The hashes of a folder's blocks; None where there are none of its manifest: then files are checked whole."""
    try:
        blocks = Blocks.model_validate_json((folder / BLOCKS).read_bytes())
        manifest = (folder / MANIFEST).read_bytes()
    except (OSError, ValidationError):
        return None
    return blocks if blocks.manifest_sha256 == hashlib.sha256(manifest).hexdigest() else None
