"""Writing a checkpoint: every rank writes its share, rank 0 commits."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.errors import RunFailed, UserError
from model.hf.kept import MODEL
from model.linear.support import LAYOUTS
from pretrain.checkpoint.folders import step_folder
from pretrain.checkpoint.manifest import FORMAT_VERSION, WITH_MODEL, FileEntry, Manifest
from pretrain.checkpoint.store import CheckpointStore
from pretrain.checkpoint.tensor_file import write_tensors
from pretrain.config.schema import Config
from pretrain.config.write import config_hash, to_toml
from pretrain.data.open import Dataset
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import Gathered
from pretrain.loop.optional import reason
from pretrain.loop.state import TrainState
from pretrain.machine.distributed import World, gather_outcomes, on_main
from pretrain.machine.fault import fault_point
from pretrain.machine.files import replace_text, sync_folder, write_synced
from pretrain.machine.memory import readable

SHARD_BYTES = 512 * 1024**2

WholeTensors = Iterable[tuple[str, int, Callable[[], Tensor]]]


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is being written, and on rank 0 all that its commit needs but the files of tensors."""

    temporary: Path
    final: Path
    step: int
    documents: dict[str, bytes]
    """Its other files, by name, as they were when the draft was made."""
    fields: dict[str, Any]
    """What the manifest says beside them."""


def save_checkpoint(
    store: CheckpointStore,
    world: World,
    config: Config,
    state: TrainState,
    tensors: WholeTensors,
    dataset: Dataset,
    grown: bool = False,
    rewound: int = 0,
) -> Path:
    """Commit one checkpoint and return its folder; `grown` and `rewound` as in `step_folder`.

    Collective; an error while writing (OSError: disk full; RunFailed: anything else) is raised on all ranks, with
    nothing left behind and older checkpoints untouched. RunFailed on one rank alone where it cannot be otherwise (see
    `read_tensors`).
    """
    draft = begin(store, world, config, state, dataset, grown, rewound)
    try:
        writer = _ShardWriter(draft.temporary)
        failed = read_tensors(world, tensors, writer.add) or writer.flush()
        parts = gather_outcomes(world, writer.written, told(draft.step, failed))
        on_main(world, lambda: commit(draft, parts))
    except Exception as error:
        if world.size == 1 or getattr(error, "on_all_ranks", False):
            on_main(world, lambda: discard(draft))
        raise
    store.written.add(draft.final)
    return draft.final


def begin(
    store: CheckpointStore,
    world: World,
    config: Config,
    state: TrainState,
    dataset: Dataset,
    grown: bool = False,
    rewound: int = 0,
) -> Draft:
    """Make the temporary folder of a checkpoint, and copy the numbers of this moment. Collective."""
    final = store.folder / step_folder(state.step, grown, rewound)
    documents: dict[str, bytes] = {}

    def work() -> Path:
        documents.update(documents_of(config, state, dataset.tokenizer))
        return _fresh_folder(final)

    temporary = on_main(world, work)
    fields = manifest_fields(config, state, documents, dataset.fingerprint, world.size)
    return Draft(temporary, final, state.step, documents, fields)


def documents_of(config: Config, state: TrainState, tokenizer: Tokenizer | None) -> dict[str, bytes]:
    """The files of a checkpoint beside those of tensors and its manifest, by name."""
    texts = {"state.json": _json(dataclasses.asdict(state)), "config.toml": to_toml(config).encode()}
    return {**texts, **(tokenizer.kept if tokenizer else {})}


def manifest_fields(
    config: Config, state: TrainState, documents: Mapping[str, bytes], fingerprint: str, world_size: int
) -> dict[str, Any]:
    """What a manifest says beside the list of files; `fingerprint` is that of the corpus, empty for none."""
    return {
        "format_version": WITH_MODEL if MODEL in documents else FORMAT_VERSION,
        "step": state.step,
        "tokens_seen": state.tokens_seen,
        "config_hash": config_hash(config),
        "data_fingerprint": fingerprint,
        "world_size": world_size,
        "support_layouts": dict(LAYOUTS),
    }


def _fresh_folder(final: Path) -> Path:
    temporary = final.with_name(f"{final.name}.tmp.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    return temporary


def discard(draft: Draft) -> None:
    """Leave nothing of a checkpoint that could not be written."""
    shutil.rmtree(draft.temporary, ignore_errors=True)


def read_tensors(world: World, tensors: WholeTensors, take: Callable[[int, str, Tensor], None]) -> Exception | None:
    """Read all tensors in their order, as all ranks do, and hand `take` those of this rank's files with the file's
    number; return the first error. File k is rank (k mod world size)'s.

    After an error this rank reads on and takes nothing more: the others wait for its part of a tensor, and then for the
    outcome that all agree on. That cannot be where a tensor's own exchange fails here, or the list of tensors does: the
    others are in the exchange, and the next one would be taken for it. Such an error is raised, and ends the job.
    """
    failed: Exception | None = None
    name = "the list of tensors"
    try:
        for index, name, _, read in numbered(tensors):
            try:
                tensor = read()
            except Exception as error:
                if isinstance(read, Gathered):
                    raise
                failed = failed or error
                continue
            try:
                if index % world.size == world.rank and failed is None:
                    take(index, name, tensor)
            except Exception as error:  # out of memory, a full disk
                failed = error
    except Exception as error:
        if world.size == 1:
            raise
        raise RunFailed(f"{name} could not be gathered for a checkpoint ({reason(error)})") from error
    return failed


def numbered(tensors: WholeTensors) -> Iterator[tuple[int, str, int, Callable[[], Tensor]]]:
    """Tensors in their order, each after the number of its file: of at most SHARD_BYTES, but for a larger tensor's."""
    index, filled = 0, 0
    for name, size, read in tensors:
        if filled and filled + size > SHARD_BYTES:
            index, filled = index + 1, 0
        filled += size
        yield index, name, size, read


def told(step: int, error: Exception | None) -> Exception | None:
    """The error as all ranks may raise it: an OSError costs one checkpoint, anything else is a sentence and the end."""
    if error is None or isinstance(error, OSError | UserError | RunFailed):
        return error
    failure = RunFailed(f"the checkpoint of step {step} could not be written ({reason(error)})")
    failure.__cause__ = error
    return failure


class _ShardWriter:
    """One rank's files, written as soon as they are full."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.written: list[FileEntry] = []
        self._index = 0
        self._tensors: dict[str, Tensor] = {}

    def add(self, index: int, name: str, tensor: Tensor) -> None:
        """Add a tensor to file `index`, and write the one before when it is another."""
        if index != self._index:
            self._write()
            self._index = index
        self._tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()

    def flush(self) -> Exception | None:
        """Write the last file; return why it cannot be."""
        try:
            self._write()
        except Exception as error:
            return error
        return None

    def _write(self) -> None:
        tensors, self._tensors = self._tensors, {}
        if tensors:
            self.written.append(write_shard(self.folder, self._index, tensors))


def write_shard(folder: Path, index: int, tensors: dict[str, Tensor]) -> FileEntry:
    """Write file `index` of a checkpoint's tensors, which are contiguous and on the CPU."""
    entry = write_tensors(folder / f"tensors-{index:05d}.safetensors", tensors)
    fault_point("shard")
    return entry


def commit(draft: Draft, parts: Iterable[list[FileEntry]]) -> None:
    """Complete a checkpoint whose files of tensors all ranks have written, and give it its name. For rank 0."""
    shards = sorted((entry for part in parts for entry in part), key=lambda entry: entry.name)
    files = [*shards, *(write_hashed(draft.temporary / name, data) for name, data in draft.documents.items())]
    fault_point("before_manifest")
    manifest = Manifest(**draft.fields, files=tuple(files))
    write_synced(draft.temporary / "manifest.json", manifest.to_bytes())
    sync_folder(draft.temporary)
    fault_point("before_rename")
    draft.temporary.rename(draft.final)
    sync_folder(draft.final.parent)
    fault_point("before_latest")
    replace_text(draft.final.parent / "latest", draft.final.name + "\n")


def _json(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1) + "\n").encode()


def write_hashed(path: Path, data: bytes) -> FileEntry:
    """Write one file, synced; returns its manifest entry."""
    return FileEntry(path.name, len(data), write_synced(path, data))


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
            f"run.dir: {store.folder} has {readable(free)} free, checkpoint.keep = {keep} checkpoints of "
            f"{readable(one)} need {readable(needed)}; free some, lower checkpoint.keep or choose another run.dir"
        )
