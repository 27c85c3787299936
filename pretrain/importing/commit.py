"""Writing the checkpoint of an import: the files of a run folder, complete before it has its name."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from model.linear.support import LAYOUTS
from pretrain.checkpoint.manifest import FORMAT_VERSION, FileEntry
from pretrain.checkpoint.save import SHARD_BYTES, Draft, commit, write_shard
from pretrain.checkpoint.store import step_folder
from pretrain.config.schema import Config
from pretrain.config.write import config_hash, to_toml
from pretrain.loop.state import TrainState


def write_checkpoint(
    folder: Path, config: Config, tokenizer: dict[str, bytes], tensors: Iterable[tuple[str, Tensor]]
) -> Path:
    """Write the checkpoint of step 0 into `folder`, a run's folder of checkpoints, and return its path.

    `tokenizer` has the contents of the files that a checkpoint keeps of one. At most SHARD_BYTES of tensors, or one
    larger tensor, are in memory.
    """
    final = folder / step_folder(0)
    temporary = final.with_name(f"{final.name}.tmp")
    temporary.mkdir(parents=True)
    state = TrainState()
    documents = {
        "state.json": (json.dumps(dataclasses.asdict(state), indent=1) + "\n").encode(),
        "config.toml": to_toml(config).encode(),
        **tokenizer,
    }
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "tokens_seen": state.tokens_seen,
        "config_hash": config_hash(config),
        "data_fingerprint": "",  # of no corpus
        "world_size": 1,
        "support_layouts": dict(LAYOUTS),
    }
    commit(Draft(temporary, final, state.step, documents, fields), [_write_shards(temporary, tensors)])
    return final


def _write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> list[FileEntry]:
    written: list[FileEntry] = []
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if held and sum(other.nbytes for other in held.values()) + tensor.nbytes > SHARD_BYTES:
            written.append(write_shard(folder, len(written), held))
            held = {}
        held[name] = tensor.contiguous()
        del tensor
    written.append(write_shard(folder, len(written), held))
    return written
