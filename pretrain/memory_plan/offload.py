"""AdamW under ZeRO whose state is in host memory: what leaves a GPU, and what its transfers need there.

At stage 1, gradients of all parameters are summed on the GPU, in fp32; at stage 2 in bf16 a rank's share of them is; at
stage 2 in fp32 and at stage 3 they are summed in host memory.
"""

from collections.abc import Sequence

from pretrain.memory_plan.ledger import Item, Ledger
from pretrain.memory_plan.zero import BUCKET, NORM_PART, SUB_GROUP, Gradients, Sharded


def pinned(size: int) -> int:
    """Bytes that PyTorch page-locks beside a GPU for `size`: the next power of two."""
    return 1 << (size - 1).bit_length() if size else 0


class Offloaded(Sharded):
    """With parallel.offload = "optimizer"."""

    def __init__(self, stage: int, numels: Sequence[int], stored: int, world_size: int, accumulates: bool, cuda: bool):
        super().__init__(stage, numels, stored, world_size)
        self.whole_sums, self.cuda = False, cuda
        self.accumulates = accumulates
        """Whether an optimizer step has several micro-steps."""

    @property
    def host(self) -> int:  # type: ignore[override]
        return sum(self.moved.values()) if self.cuda else 0

    def pinned(self, size: int) -> int:
        """Bytes of host memory for `size`."""
        return pinned(size) if self.cuda else size

    @property
    def moved(self) -> dict[Item, int]:
        """Bytes in host memory. On a CPU they are a part of the process like all else."""
        share, b, pinned = self.share, self.stored, self.pinned
        if self.stage == 3:
            whole, rest = divmod(share, SUB_GROUP)
            updated = whole * pinned(4 * SUB_GROUP) + pinned(4 * rest)
            return {"masters": 4 * share, "moments": 8 * share, "accumulators": pinned(4 * share) + updated}
        summed = pinned(4 * share) if self.stage == 2 and b == 4 and self.accumulates else 0
        return {
            "masters": pinned(4 * share),
            "moments": 8 * share,
            "accumulators": pinned(4 * share) + summed,
            "reduction": pinned(share * b) + pinned(self.largest * b),
        }

    @property
    def bucket(self) -> int:
        return 0 if self.stage == 3 else BUCKET * (4 if self.stage == 1 else self.stored)

    @property
    def sums(self) -> int:
        return 4 * self.share if self.stage < 3 and self.narrow else 0

    @property
    def copied(self) -> int:
        return 0

    def message(self, sent: int, filled: list[int]) -> int:
        if self.stage == 1 and self.narrow:  # from fp32, sent as bf16
            return 6 * sum(filled)
        return super().message(sent, filled)

    def take_in(self, ledger: Ledger, largest: int, last_micro_step: bool) -> None:
        """To host memory, parameter by parameter: the norm in fp64, and at stage 3 on a GPU two parts in fp32."""
        part = -(-largest // self.world_size) if self.stage == 3 else min(largest, self.share)
        norm = 8 * (min(part, NORM_PART) if self.stage == 3 else part)
        staged = 8 * part if self.stage == 3 and self.cuda else 0
        ledger.touch(staged + (norm if last_micro_step else 0))

    @property
    def before(self) -> int:
        """The weights, and at stage 1 and 2 room for the gradient that is on its way."""
        b = self.stored
        return self.share * b if self.stage == 3 else (self.numel + self.largest) * b

    def begin(self, ledger: Ledger) -> None:
        b = self.stored
        ledger.take("weights", (self.share if self.stage == 3 else self.numel) * b)
        ledger.take("reduction", (BUCKET if self.stage == 3 else self.largest) * b)
        for item, size in self.moved.items() if not self.cuda else ():
            ledger.take(item, size)

    def update(self, ledger: Ledger, gradients: Gradients) -> None:
        """On the CPU; the sums are on the GPU until it has ended."""
        ledger.begin("update")
        ledger.free("accumulators", self.sums)
        gradients.clear()
