"""The files a user names, each once, and what cannot be used among them."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from model.errors import UserError
from pretrain.data.documents import Skipped
from pretrain.data.sources.bounded import seen


class Named(NamedTuple):
    """A file: what it is called in the corpus, where it lies, and its bytes when it was found."""

    name: str
    path: Path
    size: int


TWICE = "reached under another name already"


class FileFinder:
    """Every regular file that was named or lies below a named folder, sorted by its name relative to that folder.

    Links are followed, to folders too. A file or folder reached again (by a link, a hard link, or because it was given
    twice) is used once, under the name that is no link where there is one. Hidden files and folders (.git and the
    like) are not visited, unless named. `left_out` lists all else: these, what was reached again, dangling links, and
    what the system does not let us read.
    """

    def __init__(self, option: str):
        self.option = option
        self.files: list[Named] = []
        self.left_out: list[Skipped] = []
        self._seen: set[tuple[int, int] | str] = set()

    def add(self, argument: Path) -> None:
        """A file or a folder as the user gave it; UserError when there is no such thing."""
        try:
            status = argument.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{self.option} {argument}: no such file or folder; check the path") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{self.option} {argument}: cannot be read ({reason}); check the path") from error
        if stat.S_ISDIR(status.st_mode):
            self._add_folder(argument, status)
        elif not stat.S_ISREG(status.st_mode):
            raise UserError(f"{self.option} {argument}: neither a file nor a folder; give a file on disk")
        elif self._new(argument, status):
            self.files.append(Named(argument.name, argument, status.st_size))
        else:
            self.left_out.append(Skipped(argument.name, TWICE))

    def _add_folder(self, root: Path, status: os.stat_result) -> None:
        found: list[Named] = []
        if not self._new(root, status):
            self.left_out.append(Skipped(root.name or str(root), TWICE))
            return
        folders, links = [root], list[Path]()
        while folders or links:
            # Links come after all that is reached without one, so that a link never takes the place of the real name.
            if not folders:
                links.sort(reverse=True)
                self._visit(links.pop(), root, folders, found)
                continue
            folder = folders.pop()
            for entry in self._entries(folder, root):
                child = Path(folder, entry.name)
                if entry.is_symlink():
                    links.append(child)
                else:
                    self._visit(child, root, folders, found)
        self.files += sorted(found)

    def _entries(self, folder: Path, root: Path) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            self.left_out.append(Skipped(_relative(folder, root), "unreadable folder"))
            return []
        hidden = [entry.name for entry in found if entry.name.startswith(".")]
        self.left_out += [Skipped(_relative(Path(folder, name), root), "hidden file or folder") for name in hidden]
        return [entry for entry in found if not entry.name.startswith(".")]

    def _visit(self, path: Path, root: Path, folders: list[Path], found: list[Named]) -> None:
        name = _relative(path, root)
        try:
            status = path.stat()
        except OSError:
            self.left_out.append(Skipped(name, "dangling link" if path.is_symlink() else "unreadable file"))
            return
        if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            self.left_out.append(Skipped(name, "not a regular file"))
        elif not self._new(path, status):
            self.left_out.append(Skipped(name, TWICE))
        elif stat.S_ISDIR(status.st_mode):
            folders.append(path)
        else:
            found.append(Named(name, path, status.st_size))

    def _new(self, path: Path, status: os.stat_result) -> bool:
        key = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
        known = key in self._seen
        self._seen.add(key)
        return not known


def listing_sha256(files: list[Named]) -> str:
    """A hash of the names and contents of files: equal for the same text alone, wherever it lies."""
    listing = hashlib.sha256()
    for name, path, size in files:
        listing.update(f"{name}\0{_content(path, size)}\n".encode("utf-8", "surrogateescape"))
    return listing.hexdigest()


def shortened(names: Iterator[str] | list[str], most: int = 20) -> str:
    """Names for a message, no more than a reader takes in."""
    listed = [name if len(name) <= 40 else f"{name[:39]}…" for name in names]
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


def _content(path: Path, size: int) -> str:
    try:
        with seen(path, size) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else path.name or str(path)
