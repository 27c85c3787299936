"""Going back: from a spike to a checkpoint before it, and on with the data behind it.

The run's state at the checkpoint, with its cursor moved past the spike and the gap written down in `rewinds`, is
committed as a checkpoint of the same step, `step-XXXXXXXX-rewound<n>`, n counting the rewinds; then the run goes on as
every resume does, from the newest. So steps, learning rates and the length of the run are as without the spike, and the
data that lies between is never trained on.

What is subtle is a kill on the way. Checkpoints that are newer than the one gone back to, as a pause leaves, go first,
and the new one comes after: before its commit the run trains up to the same spike again, after it behind the gap, and
either way it ends as if nothing had killed it. For the same end with and without pauses, the run goes back to a
checkpoint that every run has, at a multiple of `checkpoint.every` or the beginning of a stage, while there is one.
Metrics of steps that are gone back from go with them; what happened stays in `rewinds`.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from model.errors import RunFailed
from pretrain.checkpoint.folders import STEP_FOLDER
from pretrain.checkpoint.manifest import BrokenCheckpoint, read_manifest, reading, verify_hashes
from pretrain.checkpoint.read import Checkpoint
from pretrain.checkpoint.save import WholeTensors, save_checkpoint
from pretrain.loop.guard import Finding
from pretrain.loop.run import Run
from pretrain.machine.distributed import World, on_main
from pretrain.machine.fault import fault_point


class Way(NamedTuple):
    """The way back."""

    target: Path
    """The checkpoint to go back to."""
    newer: list[Path]
    """Checkpoints after it, of a way that the run will not have gone."""


def find_way(run: Run) -> Way | None:
    """The way back; None where there is no checkpoint yet. Collective."""
    return on_main(run.world, lambda: _find(run))


def _find(run: Run) -> Way | None:
    good: list[Path] = []
    for folder in run.store.folders():
        if _is_good(run, folder):
            good.append(folder)
            if _is_regular(run, folder):
                return Way(folder, good[:-1])
    return Way(good[0], []) if good else None


def _is_good(run: Run, folder: Path) -> bool:
    try:
        with reading(folder):
            verify_hashes(folder, read_manifest(folder))
        return True
    except BrokenCheckpoint as broken:
        run.console.say(f"checkpoint {folder.name} is not usable: {broken}; trying the one before")
        run.store.written.discard(folder)  # so that it is read through, and set aside, when the run goes on
        return False


def _is_regular(run: Run, folder: Path) -> bool:
    """Whether a run that nothing has interrupted has it as well."""
    match = STEP_FOLDER.fullmatch(folder.name)
    assert match is not None
    step = int(match[1])
    return step % run.config.checkpoint.every == 0 or step == run.state.stage_start


def rewind(run: Run, way: Way, cause: Finding) -> None:
    """Commit the state of `way.target` behind the newest step, at which `cause` came up. Collective.

    RunFailed when it cannot be written.
    """
    on_main(run.world, lambda: _rewind(run, way, cause))


def _rewind(run: Run, way: Way, cause: Finding) -> None:
    store, state, source = run.store, run.state, Checkpoint(way.target)
    gap = {"step": state.step, "to": source.state.step, "cursor": source.state.cursor, "cursor_after": state.cursor}
    rewinds = [*state.rewinds, gap | {"reason": cause.reason, "value": repr(cause.value)}]
    run.console.say(
        f"step {state.step}: going back to {way.target.name}; samples {source.state.cursor:,} to {state.cursor - 1:,} "
        f"of the data's order are left out (rewind {len(rewinds)} of at most {run.config.guard.max_rewinds})"
    )
    fault_point("before_rewind")
    store.delete(way.newer, run.console.say)
    if left := [folder.name for folder in way.newer if folder.exists()]:
        raise RunFailed(f"{store.folder}: {', '.join(left)} cannot be deleted; the run goes back to {way.target.name}")
    fault_point("in_rewind")
    begun = replace(source.state, cursor=state.cursor, spikes=state.spikes, rewinds=rewinds)
    alone, grown = World(0, 1, torch.device("cpu")), "-grown" in way.target.name
    try:
        save_checkpoint(store, alone, run.config, begun, _tensors(source), run.dataset, grown, rewound=len(rewinds))
    except OSError as error:
        raise RunFailed(
            f"the state to go on with after a spike could not be written to {store.folder} ({error}); free some disk "
            "space"
        ) from None
    fault_point("after_rewind")
    store.prune(run.config.checkpoint.keep, run.console.say)


def _tensors(source: Checkpoint) -> WholeTensors:
    """All of a checkpoint, as they are."""
    for name in source.names():
        tensor = source.read(name)
        yield name, tensor.nbytes, tensor.detach
