"""The running interpreter's own library sources: real text on every machine, without a network."""

import hashlib
import importlib.util
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.errors import UserError
from pretrain.data.documents import Document, Skipped, score

EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages"}
MIN_CHARACTERS = 200
MIN_BYTES = 2_000_000  # the library of every supported Python holds more than 8 MB
VAL_BUCKETS = 20


class StdlibSource:
    """Python files of the standard library, or of torch where Python ships without its sources.

    Tests, encoding tables, documentation data, duplicates and files under 200 characters are left out.
    """

    complete_survey = True

    def __init__(self) -> None:
        self.package, root = "stdlib", Path(sysconfig.get_path("stdlib"))
        self._files = _python_files(root)
        if _size(self._files) < MIN_BYTES:
            self.package, self._files = "torch", _torch_files()
        if _size(self._files) < MIN_BYTES:
            raise UserError(
                "--source stdlib: this Python ships without its library sources; pass your own text with --text"
            )

    def records(self) -> Iterator[Document | Skipped]:
        for name, raw in self._distinct():
            if raw is None:
                yield Skipped(name, "unreadable file")
            else:
                yield Document(name, raw, score(name, buckets=VAL_BUCKETS))

    def describe(self) -> dict[str, Any]:
        listing = [f"{name}\0{hashlib.sha256(raw).hexdigest()}\n" for name, raw in self._distinct() if raw is not None]
        return {
            "kind": "stdlib",
            "package": self.package,
            "python": platform.python_version(),
            "files": len(listing),
            "files_sha256": hashlib.sha256("".join(listing).encode()).hexdigest(),
        }

    def _distinct(self) -> Iterator[tuple[str, bytes | None]]:
        """(name, contents) without copies; None for the contents of a file that cannot be read."""
        seen = set()
        for name, path in self._files:
            try:
                raw = path.read_bytes()
            except OSError:
                yield name, None
                continue
            digest = hashlib.sha256(raw).digest()
            if digest not in seen and len(raw.decode(errors="replace")) >= MIN_CHARACTERS:
                seen.add(digest)
                yield name, raw


def _python_files(root: Path) -> list[tuple[str, Path]]:
    """(path relative to `root`, path), sorted."""
    named = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    return sorted((name.as_posix(), path) for name, path in named if not EXCLUDED_FOLDERS & set(name.parts[:-1]))


def _torch_files() -> list[tuple[str, Path]]:
    spec = importlib.util.find_spec("torch")
    return _python_files(Path(spec.submodule_search_locations[0])) if spec and spec.submodule_search_locations else []


def _size(files: list[tuple[str, Path]]) -> int:
    return sum(path.stat().st_size for _, path in files if path.is_file())
