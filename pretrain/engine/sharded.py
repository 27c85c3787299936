"""The engine of Sparlow's own optimizers: DeepSpeed at stage 0, which hands parameters over as they are."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from model.errors import UserError
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.distributed import World
from pretrain.engine.engine import Engine, Update
from pretrain.optim.sharded_optimizer import ShardedOptimizer


class ShardedEngine(Engine):
    """The optimizer reduces, clips and shards; DeepSpeed counts micro-steps and would only be in its way."""

    optimizer: ShardedOptimizer

    def __init__(
        self, model: Transformer, optimizer: ShardedOptimizer, config: Config, world: World, grad_accum_steps: int
    ):
        super().__init__(model, optimizer, config, world, grad_accum_steps, bf16=False)
        self.deepspeed.enable_backward_allreduce = False

    def update(self) -> Update:
        self.deepspeed.step()
        self.parameters_changed()
        return Update(self.optimizer.grad_norm, self.optimizer.applied)

    def close(self) -> None:
        super().close()
        self.optimizer.unhook()

    def reduced_bytes(self) -> int:
        """Bytes of gradients that a rank handed to reductions in the last optimizer step."""
        return self.optimizer.exchange.reduced_bytes

    def state_tensors(self) -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
        """(name, bytes, read) of the optimizer's state in a fixed order; `read()` is collective."""
        for name, owner, like, _ in self.optimizer.tensors():
            yield name, like.numel() * like.element_size(), partial(self._read, owner, like)
        for count in self.optimizer.counts:
            yield count, 8, partial(self._count, count)

    def restore_state(self, read: Callable[[str], Tensor]) -> None:
        """Put the state back, each rank what it owns here; `read(name)` gives a whole tensor."""
        for name, owner, like, put in self.optimizer.tensors():
            if owner in (-1, self.world.rank):
                stored = read(name)
                if stored.dtype != like.dtype or stored.shape != like.shape:
                    raise UserError(
                        f"optimizer.{name} of the checkpoint is {stored.dtype} {tuple(stored.shape)}, this optimizer "
                        f"keeps {like.dtype} {tuple(like.shape)}; it is of another optimizer or version"
                    )
                put(stored.to(self.world.device))
        for count in self.optimizer.counts:
            setattr(self.optimizer, count, int(read(count)))

    def _count(self, name: str) -> Tensor:
        return torch.tensor(getattr(self.optimizer, name))

    def _read(self, owner: int, like: Tensor) -> Tensor:
        if owner == -1:
            return like
        # Contiguous on both sides: what is sent is memory.
        mine = owner == self.world.rank
        tensor = like.contiguous() if mine else torch.empty(like.shape, dtype=like.dtype, device=self.world.device)
        if self.world.size > 1:
            dist.broadcast(tensor, src=owner)
        return tensor

    def _fill_optimizer_state(self) -> None:
        """Its state exists from the start."""
