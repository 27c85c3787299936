"""The engine of Sparlow's own optimizers: DeepSpeed at stage 0, which hands parameters over as they are."""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from model.errors import RunFailed, UserError
from model.linear.merging import Reset
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.data.dataset import Batch
from pretrain.engine.base import Engine, Gathered, NamedTensors, Update
from pretrain.machine.distributed import World, shared
from pretrain.optim.own_optimizer import OwnOptimizer


class OwnEngine(Engine):
    """The optimizer reduces, clips and shards; DeepSpeed counts micro-steps and would only be in its way."""

    optimizer: OwnOptimizer

    def __init__(
        self, model: Transformer, optimizer: OwnOptimizer, config: Config, world: World, grad_accum_steps: int
    ):
        super().__init__(model, optimizer, config, world, grad_accum_steps)
        self.deepspeed.enable_backward_allreduce = False
        self.norm_name = optimizer.norm_name
        self.steps_in_backward = optimizer.config.update == "per_layer"
        self.total_steps = config.schedule.total_steps

    def begin(self, lr: float, step: int = 0) -> None:
        super().begin(lr, step)
        self.optimizer.begin(step, self.total_steps)

    def _update(self, limit: float) -> Update:
        """The step; RunFailed where a matrix has not taken the path planned for it."""
        self.optimizer.limit = limit
        self.deepspeed.step()
        taken, planned = self.optimizer.low_rank_matrices, self.optimizer.planned_matrices
        if self.optimizer.applied and taken != planned:
            failure = RunFailed(
                f"{taken} matrices took the low-rank path, {planned} were planned: an error of this program, or a "
                "model changed behind its back"
            )
            raise shared(failure)
        return Update(self.optimizer.grad_norm, self.optimizer.applied, self.optimizer.partly_applied)

    def close(self) -> None:
        super().close()
        self.optimizer.unhook()

    def reduced_bytes(self) -> int:
        """Bytes of the last optimizer step."""
        return self.optimizer.exchange.reduced_bytes

    def full_gradient_bytes(self) -> int:
        """Bytes of all gradients; for a matrix optimizer, of its matrices alone."""
        return self.optimizer.full_gradient_bytes()

    def low_rank_matrices(self) -> int:
        return self.optimizer.planned_matrices

    def figures(self) -> dict[str, float]:
        return self.optimizer.figures()

    def _reset_moments(self, name: str, reset: Reset) -> None:
        self.optimizer.reset_moments(name, reset)

    def _weights(self) -> NamedTensors:
        for name, parameter in self.model.named_parameters():
            yield name, parameter.nbytes, parameter.detach

    def _optimizer_state(self) -> NamedTensors:
        for name, owner, like, _ in self.optimizer.tensors():
            yield name, like.nbytes, (partial if owner == -1 else Gathered)(self._read, owner, like)
        for count in self.optimizer.counts:
            yield count, 8, partial(self._count, count)

    def _restore(self, read: Callable[[str], Tensor], updates: int, warm_up: Batch, has_optimizer: bool) -> None:
        with torch.no_grad():
            for name, tensor in [*self._buffers(), *self.model.named_parameters()]:
                tensor.copy_(read(f"model.{name}"))
        if not has_optimizer:
            return
        for name, owner, like, put in self.optimizer.tensors():
            if owner in (-1, self.world.rank):  # each rank what it owns here
                stored = read(f"optimizer.{name}")
                if stored.dtype != like.dtype or stored.shape != like.shape:
                    raise UserError(
                        f"optimizer.{name} of the checkpoint is {stored.dtype} {tuple(stored.shape)}, this optimizer "
                        f"keeps {like.dtype} {tuple(like.shape)}; it is of another optimizer or version"
                    )
                put(stored.to(self.world.device, copy=True))
        for count in self.optimizer.counts:
            number = read(f"optimizer.{count}")
            if number.dtype != torch.int64 or number.shape != () or number < 0:
                raise UserError(f"optimizer.{count} of the checkpoint is no count; it is of another optimizer")
            setattr(self.optimizer, count, int(number))

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
