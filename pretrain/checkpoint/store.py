"""The checkpoints of one run folder: the newest good one, the leftovers, and what may be deleted."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from model.errors import UserError
from pretrain.checkpoint.folders import STEP_FOLDER, named_folders
from pretrain.checkpoint.lock import FolderLock
from pretrain.checkpoint.manifest import BrokenCheckpoint, read_manifest, reading, verify_hashes
from pretrain.checkpoint.remains import require_none_lost
from pretrain.machine.fault import fault_point


class CheckpointStore:
    """`<run>/checkpoints`. Used on rank 0 only."""

    def __init__(self, run_dir: Path):
        self.folder = run_dir / "checkpoints"
        self.written: set[Path] = set()
        """Folders that this process has committed: no need to read them through before they are used."""
        self._lock: FolderLock | None = None
        self._locked_before = True

    def lock(self) -> None:
        """Make the folder and take it for this process; UserError when another has it or it cannot be written."""
        if self._lock is not None:
            return
        try:
            self._locked_before = (self.folder / "lock").exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.folder, str(self.folder.parent))
        except OSError as error:
            raise UserError(f"run.dir: {self.folder.parent} cannot be written ({error.strerror})") from None

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def folders(self) -> list[Path]:
        """Committed checkpoints, newest first; of one step, that of the grown model before that of the small one, and
        that of the last rewind before all."""
        try:
            found = [(path.is_dir(), path) for path in named_folders(self.folder)]
        except OSError as error:
            raise self._unreadable(error) from None
        return [path for is_folder, path in found if is_folder]

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(f"run.dir: {str(self.folder)[:500]} cannot be read ({error.strerror})")

    def ends_at(self, step: int) -> bool:
        """Whether the newest checkpoint is of `step`."""
        names = (STEP_FOLDER.fullmatch(path.name) for path in self.folders()[:1])
        return any(match is not None and int(match[1]) == step for match in names)

    def newest_good(self, say: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose every byte is right; None when there is none at all.

        A broken one is set aside as `<name>.corrupt` and never deleted. UserError when all are broken, and when there
        is none but what was left shows that there were some.
        """
        broken = []
        self._make_room(say)
        for path in self.folders():
            try:
                with reading(path):
                    manifest = read_manifest(path)
                    if path not in self.written:
                        verify_hashes(path, manifest)
                return path
            except BrokenCheckpoint as reason:
                broken.append(f"{path.name}: {reason}")
                say(f"checkpoint {path.name} is not usable: {reason}; trying the one before")
                self._set_aside(path)
        if broken or any(self.folder.glob("*.corrupt*")):
            raise UserError(
                f"run.dir: no usable checkpoint is left in {self.folder} ({'; '.join(broken) or 'all set aside'}); "
                "restore one, or choose another run.dir to start anew"
            )
        require_none_lost(self.folder.parent, self._locked_before)
        return None

    def _make_room(self, say: Callable[[str], None]) -> None:
        """Set aside what has a name that a save needs and is no such thing: it would fail as on a full disk."""
        links = [self.folder / name for name in ("latest", "latest.tmp")]
        try:
            folders = [path for path in links if path.is_dir() and not path.is_symlink()]
            others = [path for path in named_folders(self.folder) if not path.is_dir()]
        except OSError as error:
            raise self._unreadable(error) from None
        for path in [*others, *folders]:
            say(f"{path} is {'a folder' if path in folders else 'no folder'}; it is set aside")
            self._set_aside(path)

    def _set_aside(self, path: Path) -> None:
        try:
            path.rename(_free_name(path.with_name(path.name + ".corrupt")))
        except OSError as error:
            raise UserError(f"run.dir: {path} cannot be renamed ({error.strerror}); make it writable") from None

    def clean(self) -> None:
        """Remove what an interrupted save or delete has left."""
        for path in [*self.folder.glob("step-*.tmp.*"), *self.folder.glob("step-*.deleting")]:
            _remove(path)
        _remove(self.folder / "latest.tmp", folders=False)

    def prune(self, keep: int, say: Callable[[str], None]) -> None:
        """Delete all but the newest `keep`. A folder loses its name first: a half-deleted one is no checkpoint."""
        self.delete(self.folders()[keep:], say)

    def delete(self, folders: list[Path], say: Callable[[str], None]) -> None:
        """Delete checkpoints; one that cannot be is told of, and kept."""
        for path in folders:
            doomed = path.with_name(path.name + ".deleting")
            try:
                path.rename(doomed)
            except OSError as error:
                say(f"the old checkpoint {path} cannot be deleted ({error.strerror}); it is kept")
                continue
            fault_point("prune")
            _remove(doomed)


def _remove(path: Path, folders: bool = True) -> None:
    """Delete a file or a link, and a folder with all that is in it where `folders`."""
    if path.is_symlink() or path.is_file():
        with contextlib.suppress(OSError):
            path.unlink()
    elif folders:
        shutil.rmtree(path, ignore_errors=True)


def _free_name(path: Path) -> Path:
    candidates = (path, *(path.with_name(f"{path.name}.{n}") for n in range(2, 1000)))
    return next(candidate for candidate in candidates if not os.path.lexists(candidate))
