"""Sparlow's own AdamW: its state from its own `fresh_state`, its hooks, and what its step takes on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.transformer import Transformer
from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.rule import adamw_step
from pretrain.memory_plan.setting import Setting
from pretrain.memory_plan.update import Update
from pretrain.optim.adamw_part import AdamWPart
from pretrain.optim.config import OwnConfig
from pretrain.optim.exchange import BUCKET_BYTES, share_out
from pretrain.optim.own_optimizer import Part
from pretrain.optim.rules.base import State

META = torch.device("meta")


@dataclass(frozen=True)
class Owned:
    """Bytes of state on the rank that has most."""

    moments: int
    projections: int = 0


class ShardedMemory(Update):
    """Over a model on the meta device; `clips`: whether gradients are clipped."""

    def __init__(
        self,
        config: OwnConfig,
        model: Transformer,
        setting: Setting,
        world_size: int,
        clips: bool,
        apart: Sequence[Part] = (),
    ):
        self.config, self.setting, self.world_size, self.clips = config, setting, world_size, clips
        parameters, names = dict(model.named_parameters()), {part.name for part in apart}
        self.elements = [AdamWPart(name, p) for name, p in parameters.items() if name not in names]
        parts: list[Part] = [*apart, *self.elements]
        for part, owner in zip(parts, share_out([part.cost(config) for part in parts], world_size), strict=True):
            part.owner = owner
        self.state = max(
            (self.owned(rank) for rank in range(world_size)), key=lambda owned: owned.moments + owned.projections
        )
        self.weights = sum(p.nbytes for p in parameters.values())

    @property
    def before(self) -> int:
        return self.weights + self.state.moments + self.state.projections

    @property
    def narrow(self) -> bool:
        """Whether gradients come in less than fp32."""
        return self.setting.param < 4

    def begin(self, ledger: Ledger) -> None:
        ledger.take("weights", self.weights)
        ledger.take("moments", self.state.moments)
        ledger.take("projections", self.state.projections)

    def owned(self, rank: int) -> Owned:
        """What `rank` keeps."""
        return Owned(sum(state_bytes(e.fresh_state(self.config, META)) for e in self.elements if e.owner == rank))

    def gradients(self, ledger: Ledger) -> Gradients:
        return ShardedGradients(ledger, self)

    def update(self, ledger: Ledger, gradients: Gradients) -> None:
        ledger.begin("update")
        if self.config.update == "step":
            if self.world_size > 1:
                ledger.touch(self.message(max(e.parameter.numel() for e in self.elements)), "reduction")
            self.apply_elements(ledger)
        gradients.clear()

    def message(self, numel: int) -> int:
        """The largest one, where `numel` is the largest gradient; smaller ones fill a bucket together."""
        return max(BUCKET_BYTES, numel * self.setting.param)

    def apply_elements(self, ledger: Ledger) -> None:
        for element in self.elements:
            numel = element.parameter.numel()
            clipped = 4 * numel if self.narrow and self.clips else 0
            ledger.touch(clipped + adamw_step(self.config, numel, self.setting))

    def step_now(self, name: str, numel: int, gradients: Gradients, ledger: Ledger) -> None:
        """per_layer: the whole step of parameter `name`, beside its gradient."""
        ledger.touch(adamw_step(self.config, numel, self.setting))


class ShardedGradients(Gradients):
    """What the hooks leave: under per_layer nothing."""

    def __init__(self, ledger: Ledger, optimizer: ShardedMemory):
        super().__init__(ledger, optimizer.setting.param)
        self.optimizer = optimizer

    def arrived(self, name: str, numel: int) -> None:
        if self.optimizer.config.update == "per_layer":
            self.optimizer.step_now(name, numel, self, self.ledger)
            self.drop(name)


def state_bytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())
