"""A folder that is filled aside and then takes its place file by file, the manifest last."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError
from model.hf.kept import CONFIG, JSON
from model.hf.staging import PARTIAL, writing
from pretrain.data.blocks import BLOCKS
from pretrain.data.manifest import MANIFEST, read_manifest
from pretrain.data.unfinished import UNFINISHED, finished_shards
from pretrain.machine.fault import fault_point
from pretrain.machine.files import sync_folder, write_synced

OWNED = ("train-*.bin", "val-*.bin", "train.*.bin", "val.*.bin", BLOCKS)


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder inside `out`, with what a killed run left there; gone afterwards, unless it has finished shards.

    Raises UserError when `out` cannot be written (or the disk is full) or another process is preparing into it.
    """
    with writing(f"--out {out}"):
        existed = out.exists()
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            folder = out / PARTIAL
            folder.mkdir(exist_ok=True)
            try:
                yield folder
            finally:
                if not finished_shards(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                if not existed and not any(out.iterdir()):
                    out.rmdir()


def commit(folder: Path, out: Path, manifest: str) -> None:
    """Move the files of `folder` into `out`. Between the first lines and the last there is no manifest in `out`."""
    (folder / UNFINISHED).unlink(missing_ok=True)
    replaced = _tokenizer_files(out)
    (out / MANIFEST).unlink(missing_ok=True)
    for name in replaced:
        (out / name).unlink(missing_ok=True)
    for pattern in OWNED:
        for path in out.glob(pattern):
            path.unlink()
    for path in sorted(folder.iterdir()):
        os.replace(path, out / path.name)
    fault_point("prepare_commit")
    write_synced(folder / MANIFEST, manifest.encode())
    sync_folder(out)
    os.replace(folder / MANIFEST, out / MANIFEST)
    sync_folder(out)


def _tokenizer_files(out: Path) -> tuple[str, ...]:
    """What the corpus in `out` keeps of its tokenizer; nothing where there is none that can be read."""
    with contextlib.suppress(UserError):
        if tokenizer := read_manifest(out).tokenizer:
            return (tokenizer.file, CONFIG) if tokenizer.file == JSON else (tokenizer.file,)
    return ()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"--out {folder}: another prepare is writing there; wait for it or choose another folder"
        ) from error
    finally:
        os.close(descriptor)
