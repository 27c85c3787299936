"""A run's saves: each checkpoint in its turn, in the background where host memory has room for a copy."""

from collections.abc import Callable
from functools import partial

from model.errors import RunFailed
from pretrain.checkpoint.host_copies import HostCopies, room_for
from pretrain.checkpoint.save import (
    Draft,
    WholeTensors,
    begin,
    discard,
    numbered,
    read_tensors,
    save_checkpoint,
    told,
)
from pretrain.checkpoint.store import CheckpointStore
from pretrain.checkpoint.writing import ABANDON_S, POLL_S, Writing
from pretrain.config.schema import Config
from pretrain.data.open import Dataset
from pretrain.loop.optional import reason
from pretrain.loop.state import TrainState
from pretrain.machine.distributed import World, gather_outcomes, on_main, shared, sum_over_ranks
from pretrain.machine.fault import fault_point

Tensors = Callable[[], WholeTensors]
"""Lists a run's tensors anew, as `Engine.whole_tensors` does."""


class Saver:
    """Saves one run's checkpoints and deletes those too old.

    A disk that is full costs a checkpoint, which is said at once, and not the run. In the background, `save` returns
    when the tensors are copied; a thread writes the copies, and the next save waits for it.
    """

    def __init__(
        self,
        store: CheckpointStore,
        world: World,
        config: Config,
        dataset: Dataset,
        say: Callable[[str], None],
        background: bool,
    ):
        self.store, self.world, self.config, self.dataset, self.say = store, world, config, dataset, say
        self._copies = HostCopies(world.device) if background else None
        self._writing: Writing | None = None
        self._saved = True

    @property
    def copied(self) -> int:
        """Bytes of host memory that this rank keeps for copies; 0 in the foreground."""
        return self._copies.size if self._copies is not None else 0

    def prepare(self, tensors: Tensors) -> None:
        """Take the memory of the copies. Collective; where a rank has none, saves are made in the foreground."""
        if self._copies is None:
            return
        failed: Exception | None = None
        mine = (n for index, _, n, _ in numbered(tensors()) if index % self.world.size == self.world.rank)
        try:
            self._copies.reserve(sum(map(room_for, mine)))
        except Exception as error:
            failed = RunFailed(reason(error))
        try:
            gather_outcomes(self.world, None, failed)
        except RunFailed as without:
            self._copies.close()
            self._copies = None
            self.say(f"checkpoints are written while training waits: there is no memory for a copy of one ({without})")

    def save(self, state: TrainState, tensors: Tensors) -> None:
        """Save all tensors and `state` as they are now. Collective.

        RunFailed when this save or the one before ends with anything but an OSError.
        """
        self.finish()
        self.prepare(tensors)
        try:
            if self._copies is None:
                save_checkpoint(self.store, self.world, self.config, state, tensors(), self.dataset)
                on_main(self.world, lambda: self._after_commit(state.step))
            else:
                self._writing = self._begin(self._copies, state, tensors)
            self._saved = True
        except OSError as error:
            self._saved = False
            self._say_not_written(state.step, error)

    def finish(self) -> bool:
        """Wait for the save on its way; return whether the last one is committed. Collective; RunFailed as `save`."""
        writing = self._writing
        if writing is None:
            return self._saved
        writing.join(POLL_S)
        while sum_over_ranks(self.world, writing.is_alive())[0]:  # a collective, to notice a rank that is gone
            writing.join(POLL_S)
        self._writing = None
        failed = on_main(self.world, lambda: writing.failed)
        self._saved = failed is None
        if failed is not None and not isinstance(failed, OSError):
            raise shared(failed)
        return self._saved

    def close(self, alone: bool = False) -> None:
        """Wait for the save on its way, whatever comes of it, and give the copies' memory back. Not collective.

        A rank that ends `alone` waits no longer than ABANDON_S: an unfinished checkpoint counts for nothing.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.join(ABANDON_S if alone and self.world.size > 1 else None)
            if writing.is_alive():
                return
        if self._copies is not None:
            self._copies.close()

    def _begin(self, copies: HostCopies, state: TrainState, tensors: Tensors) -> Writing:
        """Copy everything, and let a thread write it once all ranks have their copies."""
        draft = begin(self.store, self.world, self.config, state, self.dataset)
        try:
            failed = read_tensors(self.world, tensors(), copies.take)
            gather_outcomes(self.world, None, told(state.step, failed))
        except Exception as error:
            if self.world.size == 1 or getattr(error, "on_all_ranks", False):
                on_main(self.world, lambda: discard(draft))
            raise
        fault_point("copied")
        try:
            return Writing(self.world, draft, copies, partial(self._ended, draft))
        except RuntimeError as error:  # this rank can start no thread
            raise RunFailed(str(told(state.step, error))) from error

    def _ended(self, draft: Draft, failed: Exception | None) -> None:
        """What follows a commit or its failure, in the thread of rank 0."""
        if failed is None:
            self.store.written.add(draft.final)
            self._after_commit(draft.step)
        else:
            self._say_not_written(draft.step, failed)

    def _after_commit(self, step: int) -> None:
        try:
            self.store.prune(self.config.checkpoint.keep, self.say)
        except Exception as error:
            self.say(f"step {step}: older checkpoints not deleted ({reason(error)}); training goes on")
        fault_point("after_save")

    def _say_not_written(self, step: int, error: Exception) -> None:
        then = "training goes on" if isinstance(error, OSError) else "the run ends at its next save"
        self.say(f"step {step}: CHECKPOINT NOT WRITTEN ({error}); older ones are untouched, {then}")
