"""AdamW under DeepSpeed 0.19's ZeRO: what a rank keeps of all P parameters, and the buffers of its collectives.

Stage 1 in bf16 is DeepSpeed's BF16_Optimizer, which sums gradients of all parameters in fp32 on every rank; so does
stage 1 in fp32, with a bucket; 2 and 3 collect gradients in a bucket and keep the sum of a rank's own share.
"""

from model.transformer import Transformer
from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.setting import Setting
from pretrain.memory_plan.update import Update

BUCKET = 500_000_000
"""Numbers in one message (reduce_bucket_size, and the engine's own at stage 0)."""

MOST_GATHERED = 1_000_000_000
"""Numbers of gathered weights that stage 3 keeps at once (max_live_parameters)."""

SUB_GROUP = 1_000_000_000
"""Numbers that stage 3 updates at once (sub_group_size)."""


class Sharded(Update):
    """Of one of `world_size` ranks, at stage 1 to 3."""

    def __init__(self, stage: int, shape: Transformer, setting: Setting, world_size: int):
        numels = [p.numel() for p in shape.parameters()]
        self.stage, self.setting, self.world_size = stage, setting, world_size
        self.numel, self.largest = sum(numels), max(numels)
        self.share = -(-self.numel // world_size)
        self.whole_sums = stage == 1 and setting.param == 2
        """Whether gradients of all parameters are summed in fp32."""

    @property
    def bucket(self) -> int:
        """Bytes of the bucket that a backward pass takes."""
        return 0 if self.stage == 3 else BUCKET * self.setting.param

    @property
    def sums(self) -> int:
        """Bytes that gradients are summed in from the first backward pass to the update."""
        return 0 if self.stage == 3 else 4 * (self.numel if self.stage == 1 else self.share)

    @property
    def before(self) -> int:
        stored = self.share if self.stage == 3 else self.numel
        return stored * self.setting.param + 12 * self.share

    def begin(self, ledger: Ledger) -> None:
        b = self.setting.param
        ledger.take("weights", (self.share if self.stage == 3 else self.numel) * b)
        ledger.take("masters", 4 * self.share)
        ledger.take("moments", 8 * self.share)
        if self.whole_sums:
            ledger.take("accumulators", 4 * self.numel)
        if self.stage == 3:
            ledger.take("accumulators", 4 * self.share)
            ledger.take("reduction", BUCKET * b)

    def gradients(self, ledger: Ledger) -> Gradients:
        return Gradients(ledger, self.setting.param) if self.whole_sums else Bucketed(ledger, self)

    def update(self, ledger: Ledger, gradients: Gradients) -> None:
        b = self.setting.param
        if self.whole_sums and self.world_size > 1:
            ledger.touch(4 * min(BUCKET, self.numel), "reduction")
        ledger.begin("update")
        if self.stage == 3:
            ledger.touch(4 * min(SUB_GROUP, self.share))
        elif not self.whole_sums:  # the norm in fp64, parameter by parameter; in fp32 the share once more
            ledger.touch(8 * min(self.largest, self.share) + (4 * self.share if b == 4 else 0))
            ledger.free("accumulators", self.sums)
        gradients.clear()


class Bucketed(Gradients):
    """Copied into the bucket as soon as they are there."""

    def __init__(self, ledger: Ledger, optimizer: Sharded):
        super().__init__(ledger, optimizer.setting.param)
        self.optimizer = optimizer
        self._summing = False
        gathered = min(MOST_GATHERED, optimizer.numel) * optimizer.setting.param
        self._gathered = gathered if optimizer.stage == 3 and optimizer.world_size > 1 else 0

    def begin_forward(self) -> None:
        self.ledger.take("weights", self._gathered)

    def begin_backward(self) -> None:
        self.ledger.take("reduction", self.optimizer.bucket)
        if not self._summing:
            self.ledger.take("accumulators", self.optimizer.sums)
            self._summing = True

    def end_backward(self) -> None:
        """The bucket is flattened for its last message."""
        self.ledger.touch(min(BUCKET, self.optimizer.numel) * self.param, "reduction")
        self.ledger.free("reduction", self.optimizer.bucket)
        self.ledger.free("weights", self._gathered)

    def receive(self, name: str, numel: int) -> None:
        self.ledger.touch(numel * self.param, "gradients")
