"""Prepared corpora that are not as `prepare` wrote them."""

import hashlib
import json
import os
from pathlib import Path


def flip(path: Path, byte: int) -> None:
    """Flip a bit of one byte, as a bad disk does: neither size nor time of the file tell."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(byte)
        old = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([old ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def as_if_written_so(folder: Path) -> None:
    """Put the hashes of the files as they are into the manifest; blocks have none then."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in ("train", "val"):
        entry = manifest[split]
        for file in [*entry["files"], entry["index"], entry["text_bytes"]]:
            file["sha256"] = hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
