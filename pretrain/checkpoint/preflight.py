"""What can be known before the first step: whether the checkpoints will fit on the disk."""

import shutil

from model.errors import UserError
from pretrain.checkpoint.save import WholeTensors
from pretrain.checkpoint.store import CheckpointStore


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
