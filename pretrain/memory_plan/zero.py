"""AdamW under DeepSpeed 0.19's ZeRO: what a rank keeps of all P parameters, and the buffers of its collectives.

Stage 1 in bf16 is DeepSpeed's BF16_Optimizer, which sums gradients of all parameters in fp32 on every rank and sends
them whole, as bf16, after the last backward pass. Stage 1 in fp32 sums them on the parameters and sends them then by
way of a bucket. Stages 2 and 3 send a bucket whenever it is full and keep the sum of a rank's own share.

tests/pretrain/memory_plan/test_zero_truth.py holds this and offload.py against the real engine on a CPU, in one process
and in two, with small buckets: the peak of each phase on the rank that takes most, weights, masters, moments, and sums
and buckets before and after a backward pass. Not held: what only a GPU does (transfers to host memory, page-locked
memory, NCCL's own buffers), a parameter larger than a bucket, stage 3 with more parameters than MOST_GATHERED by far,
one micro-step, stage 0 in several processes, and stage 1 in bf16 with weight decay and fewer than BUCKET parameters,
whose two groups are copied into one message on top.
"""

from collections.abc import Sequence

from pretrain.memory_plan.ledger import Ledger

BUCKET = 500_000_000
"""Numbers in one message (reduce_bucket_size, and the engine's own at stage 0)."""

MOST_GATHERED = 1_000_000_000
"""Numbers of gathered weights that stage 3 keeps at once (max_live_parameters)."""

SUB_GROUP = 1_000_000_000
"""Numbers that stage 3 updates at once (sub_group_size), and up to a parameter more."""

NORM_PART = 250_000_000
"""Numbers whose norm stage 3 takes at once, in fp64, where the state is in host memory."""


class Sharded:
    """What the rank of `world_size` that has most keeps at stage 1 to 3, of parameters of `numels` numbers of `stored`
    bytes each."""

    host = 0
    """Bytes that are in the host's memory instead; no item of the ledger."""

    def __init__(self, stage: int, numels: Sequence[int], stored: int, world_size: int):
        self.stage, self.stored, self.world_size = stage, stored, world_size
        self.numel, self.largest = sum(numels), max(numels)
        self.share = -(-self.numel // world_size)
        self.sub_group = _largest_sub_group([-(-n // world_size) for n in numels])
        self.whole_sums = stage == 1 and stored == 2
        """Whether gradients of all parameters are summed in fp32."""

    @property
    def narrow(self) -> bool:
        """Whether messages are in bf16."""
        return self.stored == 2

    @property
    def bucket(self) -> int:
        """Bytes of the bucket that a backward pass takes."""
        return 0 if self.stage == 3 else BUCKET * self.stored

    @property
    def sums(self) -> int:
        """Bytes that a rank's own gradients are summed in from the first message to the update."""
        return 0 if self.stage == 3 else 4 * self.share

    @property
    def copied(self) -> int:
        """Bytes that a later backward pass takes for a rank's own gradients, before it adds them."""
        return 0 if self.narrow or self.stage == 3 else 4 * self.share

    @property
    def before(self) -> int:
        """Bytes before the first step: weights and all state."""
        stored = self.share if self.stage == 3 else self.numel
        return stored * self.stored + 12 * self.share

    def begin(self, ledger: Ledger) -> None:
        """Take them."""
        b = self.stored
        ledger.take("weights", (self.share if self.stage == 3 else self.numel) * b)
        ledger.take("masters", 4 * self.share)
        ledger.take("moments", 8 * self.share)
        if self.whole_sums:
            ledger.take("accumulators", 4 * self.numel)
        if self.stage == 3:
            ledger.take("accumulators", 4 * self.share)
            ledger.take("reduction", BUCKET * b)

    def gradients(self, ledger: Ledger) -> "Gradients":
        """Where gradients go."""
        if self.whole_sums:
            return Gradients(ledger, self.stored)
        return Late(ledger, self) if self.stage == 1 else Bucketed(ledger, self)

    def message(self, sent: int, filled: list[int]) -> int:
        """Bytes of the copy that the bucket is sent from, with parameters of these sizes in it and `sent` numbers sent
        before, and of the largest rank's part that is added to the sums."""
        b, numel = self.stored, sum(filled)
        if self.stage == 3:
            return numel * b + (self.received(numel) if self.narrow else 0)
        if self.narrow:
            return numel * b + 4 * min(max(filled), self.share)
        one_owner = sent // self.share == (sent + numel - 1) // self.share
        return 0 if one_owner else numel * b

    def received(self, numel: int) -> int:
        """Bytes of a rank's part of it, until that is summed."""
        if self.stage < 3:
            return 0
        return 4 * -(-numel // self.world_size) if self.narrow else 4 * numel

    def take_in(self, ledger: Ledger, largest: int, last_micro_step: bool) -> None:
        """What a rank's part of a message takes, in which the largest parameter has `largest` numbers."""

    def update(self, ledger: Ledger, gradients: "Gradients") -> None:
        """After the last micro-step: enter the phase, take and free."""
        if self.whole_sums:
            ledger.touch(2 * self.numel, "reduction")
        ledger.begin("update")
        if self.stage == 3:  # the norm in fp64, parameter by parameter; then the gradients of a sub-group once more
            ledger.touch(max(8 * -(-self.largest // self.world_size), 4 * self.sub_group))
        elif not self.whole_sums:  # the same; the share is copied where it is not in one piece
            ledger.touch(max(8 * min(self.largest, self.share), 0 if self.narrow else 4 * self.share))
            ledger.free("accumulators", self.sums)
        gradients.clear()


class Gradients:
    """Kept on the parameter until the update, summed over micro-steps."""

    def __init__(self, ledger: Ledger, stored: int):
        self.ledger, self.stored = ledger, stored
        self.last_micro_step = True
        """Whether the present backward pass ends the step."""
        self._held: dict[str, int] = {}

    def begin_forward(self) -> None:
        """Begin a micro-step."""

    def end_backward(self) -> None:
        """End a micro-step."""

    def receive(self, name: str, numel: int) -> None:
        """A fresh gradient of `numel` numbers in the parameter's precision; added in place to one that is there."""
        size = numel * self.stored
        if name in self._held:
            self.ledger.touch(size, "gradients")
        else:
            self.ledger.take("gradients", size)
            self._held[name] = size

    def clear(self) -> None:
        """Let go of all gradients."""
        for size in self._held.values():
            self.ledger.free("gradients", size)
        self._held.clear()


class Bucketed(Gradients):
    """Copied into the bucket as soon as they are there; a full one is sent."""

    def __init__(self, ledger: Ledger, optimizer: Sharded):
        super().__init__(ledger, optimizer.stored)
        self.optimizer = optimizer
        self._open = self._summing = False
        self._passes = self._sent = self._copied = 0
        self._filled: list[int] = []
        gathered = min(MOST_GATHERED, optimizer.numel) * optimizer.stored
        self._gathered = gathered if optimizer.stage == 3 and optimizer.world_size > 1 else 0

    def begin_forward(self) -> None:
        self.ledger.take("weights", self._gathered)

    def end_backward(self) -> None:
        self.send()
        self.ledger.free("accumulators", self._copied)
        self._sent = self._copied = 0
        self._passes += 1
        self.close_bucket()
        self.ledger.free("weights", self._gathered)

    def receive(self, name: str, numel: int) -> None:
        with self.ledger.during(numel * self.stored, "gradients"):
            self.open_bucket()
            self.fill(numel)

    def open_bucket(self) -> None:
        if not self._open:
            self.ledger.take("reduction", self.optimizer.bucket)
            self._open = True

    def close_bucket(self) -> None:
        self.ledger.free("reduction", self.optimizer.bucket * self._open)
        self._open = False

    def fill(self, numel: int) -> None:
        """Copy a gradient into the bucket, and make room for it first."""
        if sum(self._filled) + numel > BUCKET:
            self.send()
        self._filled.append(numel)

    def send(self) -> None:
        """Reduce what is in the bucket, and add a rank's own part of it to the sums."""
        numel, optimizer = sum(self._filled), self.optimizer
        if not numel:
            return
        if optimizer.narrow:  # added from the message, in fp32 from the bucket
            self._sum()
        self.ledger.touch(optimizer.message(self._sent, self._filled), "reduction")
        self._sum()
        with self.ledger.during(optimizer.received(numel), "reduction"):
            optimizer.take_in(self.ledger, max(self._filled), self.last_micro_step)
        self._sent += numel
        self._filled.clear()

    def _sum(self) -> None:
        if not self._summing:
            self.ledger.take("accumulators", self.optimizer.sums)
            self._summing = True
        elif self._passes and not self._copied:
            self._copied = self.optimizer.copied
            self.ledger.take("accumulators", self._copied)


class Late(Bucketed):
    """Stage 1: of all parameters, summed in fp32 until the last backward pass has ended, then sent."""

    def receive(self, name: str, numel: int) -> None:
        if not self.optimizer.narrow:
            Gradients.receive(self, name, numel)
            self.open_bucket()
            return
        with self.ledger.during(2 * numel, "gradients"):
            self.open_bucket()
            if name in self._held:
                self.ledger.touch(4 * numel)
            else:
                self.ledger.take("accumulators", 4 * numel)
                self._held[name] = 4 * numel

    def end_backward(self) -> None:
        if not self.last_micro_step:
            return
        for size in reversed(self._held.values()):
            self.fill(size // 4)
            self.ledger.free("accumulators" if self.optimizer.narrow else "gradients", size)
        self._held.clear()
        super().end_backward()

    def close_bucket(self) -> None:
        """Gradients of others lie in it until they are dropped."""
        if not (self.optimizer.narrow and self.optimizer.world_size > 1):
            super().close_bucket()

    def clear(self) -> None:
        super().close_bucket()


def _largest_sub_group(parts: list[int]) -> int:
    """Numbers in the largest of stage 3's sub-groups, each closed by the parameter that fills it."""
    largest = group = 0
    for part in parts:
        group = part if group >= SUB_GROUP else group + part
        largest = max(largest, group)
    return largest
