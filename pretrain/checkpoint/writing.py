"""The thread that writes one checkpoint from copies of its tensors, while training goes on.

It never takes part in a collective: those belong to the training thread, in whose order all ranks make them. The ranks'
threads tell rank 0's what they have written through the process group's key-value store, which any thread may ask; rank
0's commits.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import torch.distributed as dist

from model.errors import RunFailed
from pretrain.checkpoint.host_copies import HostCopies
from pretrain.checkpoint.manifest import FileEntry
from pretrain.checkpoint.save import Draft, commit, discard, told, write_shard
from pretrain.machine.distributed import World

POLL_S = 0.05

ABANDON_S = 10.0
"""How long a rank that ends alone waits for its thread: the others learn only then that it has failed."""


class Writing(threading.Thread):
    """One rank's part in one checkpoint; begins at once. On rank 0 `failed` is the outcome of all."""

    def __init__(self, world: World, draft: Draft, copies: HostCopies, ended: Callable[[Exception | None], None]):
        """`ended` is called on rank 0, in the thread, with the error of all or none, after the commit."""
        super().__init__(name="checkpoint", daemon=True)
        self.world, self.draft, self.copies, self.ended = world, draft, copies, ended
        self.failed: Exception | None = None
        self.arrived = copies.queue.mark()
        self.store = dist.distributed_c10d._get_default_store() if world.size > 1 else None
        self.start()

    def run(self) -> None:
        written: list[FileEntry] = []
        try:
            self.arrived()
            for index, tensors in self.copies.files.items():
                written.append(write_shard(self.draft.temporary, index, tensors))
        except Exception as error:
            self.failed = told(self.draft.step, error)
        try:
            if self.world.is_main:
                self._complete(written)
            else:
                self._tell(written)
        except Exception as error:
            self.failed = self.failed or told(self.draft.step, error)

    def _complete(self, written: list[FileEntry]) -> None:
        """Commit when all ranks have written their files; leave nothing behind where one could not."""
        try:
            parts = [written, *(self._ask(rank) for rank in range(1, self.world.size))]
            if self.failed is None:
                commit(self.draft, parts)
        except Exception as error:
            self.failed = self.failed or told(self.draft.step, error)
        if self.failed is not None:
            discard(self.draft)
        self.ended(self.failed)

    def _key(self, rank: int) -> str:
        return f"sparlow/{self.draft.temporary.name}/{rank}"

    def _tell(self, written: list[FileEntry]) -> None:
        """Hand rank 0 this rank's files, or why there are none."""
        assert self.store is not None
        failed = self.failed and {"full": isinstance(self.failed, OSError), "sentence": str(self.failed)}
        self.store.set(self._key(self.world.rank), json.dumps({"files": list(map(asdict, written)), "failed": failed}))

    def _ask(self, rank: int) -> list[FileEntry]:
        """Wait for the files of `rank`; its error becomes that of all."""
        assert self.store is not None
        while not self.store.check([self._key(rank)]):
            time.sleep(POLL_S)
        answer = json.loads(self.store.get(self._key(rank)))
        self.store.delete_key(self._key(rank))
        if answer["failed"] and self.failed is None:
            kind = OSError if answer["failed"]["full"] else RunFailed
            self.failed = kind(answer["failed"]["sentence"])
        return [FileEntry(**entry) for entry in answer["files"]]
