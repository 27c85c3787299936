"""Writing the checkpoint of an import: the files of a run folder, complete before it has its name."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from pretrain.checkpoint.folders import step_folder
from pretrain.checkpoint.manifest import FileEntry
from pretrain.checkpoint.save import SHARD_BYTES, Draft, commit, documents_of, manifest_fields, write_shard
from pretrain.config.schema import Config
from pretrain.data.tokenizer import Tokenizer
from pretrain.loop.state import TrainState


def write_checkpoint(
    folder: Path, config: Config, tokenizer: Tokenizer | None, tensors: Iterable[tuple[str, Tensor]]
) -> Path:
    """Write the checkpoint of step 0 into `folder`, a run's folder of checkpoints, and return its path.

    At most SHARD_BYTES of tensors, or one larger tensor, are in memory beside the one that is being made.
    """
    final, state = folder / step_folder(0), TrainState()
    temporary = final.with_name(f"{final.name}.tmp")
    temporary.mkdir(parents=True)
    documents = documents_of(config, state, tokenizer)
    fields = manifest_fields(config, state, documents, fingerprint="", world_size=1)
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
