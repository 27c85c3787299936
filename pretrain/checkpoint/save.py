"""Writing a checkpoint: every rank writes its share, rank 0 commits."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from model.errors import UserError
from model.linear.support import LAYOUTS
from pretrain.checkpoint.manifest import FORMAT_VERSION, FileEntry, Manifest
from pretrain.checkpoint.store import CheckpointStore, step_folder
from pretrain.config.schema import Config
from pretrain.config.write import config_hash, to_toml
from pretrain.data.dataset import TokenDataset
from pretrain.loop.state import TrainState
from pretrain.machine.distributed import World, gather_outcomes, on_main
from pretrain.machine.fault import fault_point
from pretrain.machine.files import replace_text, sync_folder, write_synced

SHARD_BYTES = 512 * 1024**2

WholeTensors = Iterable[tuple[str, int, Callable[[], Tensor]]]


def save_checkpoint(
    store: CheckpointStore,
    world: World,
    config: Config,
    state: TrainState,
    tensors: WholeTensors,
    dataset: TokenDataset,
    grown: bool = False,
    rewound: int = 0,
) -> Path:
    """Commit one checkpoint and return its folder; `grown` and `rewound` as in `step_folder`.

    Collective; an error while writing (OSError: disk full) is raised on all ranks, with nothing left behind and older
    checkpoints untouched.
    """
    final = store.folder / step_folder(state.step, grown, rewound)
    temporary = on_main(world, lambda: _fresh_folder(final))
    try:
        files = _write_shards(temporary, world, tensors)
        on_main(world, lambda: _commit(temporary, final, world, config, state, files, dataset))
    except Exception:
        on_main(world, lambda: shutil.rmtree(temporary, ignore_errors=True))
        raise
    store.written.add(final)
    return final


def _fresh_folder(final: Path) -> Path:
    temporary = final.with_name(f"{final.name}.tmp.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    return temporary


def _write_shards(folder: Path, world: World, tensors: WholeTensors) -> list[FileEntry]:
    """Tensors in their order, cut into files of at most SHARD_BYTES; file k is rank (k mod world size)'s to write."""
    writer = _ShardWriter(folder, world)
    for name, size, read in tensors:
        writer.add(name, size, read)
    writer.flush()
    parts = gather_outcomes(world, writer.written, writer.failed)
    return sorted((entry for part in parts for entry in part), key=lambda entry: entry.name)


class _ShardWriter:
    """One rank's side of writing the shards. Once a write has failed it only keeps count, so that nobody waits."""

    def __init__(self, folder: Path, world: World):
        self.folder, self.world = folder, world
        self.written: list[FileEntry] = []
        self.failed: Exception | None = None
        self._index, self._bytes = 0, 0
        self._tensors: dict[str, Tensor] = {}

    def add(self, name: str, size: int, read: Callable[[], Tensor]) -> None:
        """Add a tensor, to the next file when its `size` bytes would make the current one too large."""
        if self._bytes and self._bytes + size > SHARD_BYTES:
            self.flush()
            self._index += 1
            self._bytes = 0
        self._bytes += size
        tensor = read()  # on every rank, as reading is collective
        if self._index % self.world.size == self.world.rank and self.failed is None:
            try:
                self._tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
            except Exception as error:  # out of memory
                self.failed = error

    def flush(self) -> None:
        if not self._tensors:
            return
        try:
            data = safetensors.torch.save(self._tensors)
            self.written.append(write_hashed(self.folder / f"tensors-{self._index:05d}.safetensors", data))
            fault_point("shard")
        except Exception as error:
            self.failed = error
        self._tensors = {}


def _commit(
    temporary: Path,
    final: Path,
    world: World,
    config: Config,
    state: TrainState,
    shards: list[FileEntry],
    dataset: TokenDataset,
) -> None:
    files = [
        *shards,
        write_hashed(temporary / "state.json", _json(dataclasses.asdict(state))),
        write_hashed(temporary / "config.toml", to_toml(config).encode()),
        write_hashed(temporary / "tokenizer.model", dataset.tokenizer_file.read_bytes()),
    ]
    fault_point("before_manifest")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        step=state.step,
        tokens_seen=state.tokens_seen,
        config_hash=config_hash(config),
        data_fingerprint=dataset.fingerprint,
        world_size=world.size,
        support_layouts=LAYOUTS,
        files=tuple(files),
    )
    write_synced(temporary / "manifest.json", _json(dataclasses.asdict(manifest)))
    sync_folder(temporary)
    fault_point("before_rename")
    temporary.rename(final)
    sync_folder(final.parent)
    fault_point("before_latest")
    replace_text(final.parent / "latest", final.name + "\n")


def _json(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1) + "\n").encode()


def write_hashed(path: Path, data: bytes) -> FileEntry:
    """Write one file, synced; returns its manifest entry."""
    write_synced(path, data)
    return FileEntry(path.name, len(data), hashlib.sha256(data).hexdigest())


def require_disk_space(store: CheckpointStore, tensors: WholeTensors, keep: int, growth: float = 1.0) -> None:
    """UserError when the disk cannot hold `keep` checkpoints and the one that is being written.

    `growth` is by how much they will still grow. Those of this run that are already there count as space: they will be
    pruned.
    """
    one = round(growth * sum(size for _, size, _ in tensors))
    needed = one * max(1, keep + 1 - len(store.folders()))
    free = shutil.disk_usage(store.folder).free
    if free < needed:
        raise UserError(
            f"run.dir: {store.folder} has {free / 1e9:.1f} GB free, checkpoint.keep = {keep} checkpoints of "
            f"{one / 1e9:.1f} GB need {needed / 1e9:.1f} GB; free some, lower checkpoint.keep or choose another run.dir"
        )
