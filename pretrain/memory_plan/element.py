"""AdamW on every parameter."""

from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.offload import Offloaded
from pretrain.memory_plan.setting import Setting
from pretrain.memory_plan.update import Update
from pretrain.memory_plan.zero import BUCKET, Sharded


class Unsharded(Update):
    """Stage 0: every process has all, and PyTorch's fused step takes nothing."""

    def __init__(self, shape: Transformer, setting: Setting, world_size: int):
        parameters = list(shape.parameters())
        self.setting, self.world_size = setting, world_size
        self.numel = sum(p.numel() for p in parameters)
        self.weights = self.numel * setting.param
        self.moments = 2 * self.weights + 4 * len(parameters)

    @property
    def before(self) -> int:
        return self.weights + self.moments

    def begin(self, ledger: Ledger) -> None:
        ledger.take("weights", self.weights)
        ledger.take("moments", self.moments)

    def gradients(self, ledger: Ledger) -> Gradients:
        return Gradients(ledger, self.setting.param)

    def update(self, ledger: Ledger, gradients: Gradients) -> None:
        if self.world_size > 1:  # at the end of the last backward pass
            ledger.touch(min(BUCKET, self.numel) * self.setting.param, "reduction")
        ledger.begin("update")
        gradients.clear()


def element_memory(config: Config, shape: Transformer, setting: Setting, world_size: int) -> Update:
    """At the configuration's ZeRO stage."""
    stage, train = config.parallel.zero_stage, config.train
    if not stage:
        return Unsharded(shape, setting, world_size)
    if config.parallel.offload == "none":
        return Sharded(stage, shape, setting, world_size)
    accumulates = train.global_batch_size > train.micro_batch_size * world_size
    return Offloaded(stage, shape, setting, world_size, accumulates)
