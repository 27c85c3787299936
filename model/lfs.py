"""Git LFS pointers: the short text that a checkout leaves in a file's place until `git lfs pull` fetches the file."""

from pathlib import Path

from model.errors import UserError

HEAD = b"version https://git-lfs.github.com/spec/"
POINTER = "Git LFS pointer instead of the file (git lfs pull fetches it)"


def is_pointer(path: Path) -> bool:
    """Whether such a text stands at `path`; False where nothing can be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(HEAD)) == HEAD
    except (OSError, ValueError):  # the latter of a name with a NUL
        return False


def refuse_pointer(path: Path) -> None:
    """Name a pointer as what it is, by a UserError; for readers that cannot make sense of a file."""
    if is_pointer(path):
        raise UserError(f"{path}: {POINTER}")
