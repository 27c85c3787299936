"""An engine: micro-steps, the update with its finite check, the learning rate, and every tensor of a run by name."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from model.linear.merging import Reset
from model.linear.support.base import check_supports
from model.linear.support.element import step_caches
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.data.dataset import Batch
from pretrain.engine.deepspeed import deepspeed_settings, release
from pretrain.engine.merging import frozen_matrices, merge_due, merging_linears, take_from_first
from pretrain.machine.distributed import World, import_deepspeed
from pretrain.machine.fault import fault_flag, spoiled

NamedTensors = Iterator[tuple[str, int, Callable[[], Tensor]]]
"""(name, bytes, read) of whole tensors in a fixed order; `read()` is collective and valid until the next one. One that
processes exchange is `Gathered`, with one exchange and nothing that can fail after it."""


class Gathered(partial[Tensor]):
    """The `read` of a tensor that processes exchange: all must take part in it, or the others wait."""


@dataclass(frozen=True)
class Update:
    """What an optimizer step did."""

    grad_norm: float
    """The gradient's global L2 norm before clipping; NaN of one that was dropped, not finite where the gradient is."""
    applied: bool
    partly: bool = False
    """Not applied, yet some weights had moved within the backward pass before a gradient was not finite."""


class Engine(ABC):
    """DeepSpeed around a model and its optimizer; a subclass for each path that an update can take."""

    norm_name = "grad_norm"
    """The name that `Update.grad_norm` is logged by."""
    steps_in_backward = False
    """Whether weights change inside of the backward pass."""

    def __init__(
        self, model: Transformer, optimizer: torch.optim.Optimizer, config: Config, world: World, grad_accum_steps: int
    ):
        self.world = world
        self.optimizer = optimizer
        self.micro_batches = grad_accum_steps * world.size
        self.caches = step_caches(model)
        self.merging, self.seed = merging_linears(model), config.run.seed
        self.updates = 0
        """Applied so far, since the optimizer began."""
        self.deepspeed, *_ = import_deepspeed().initialize(
            model=model, optimizer=optimizer, config=deepspeed_settings(config, grad_accum_steps)
        )
        take_from_first(frozen_matrices(self.model), world)

    @property
    def model(self) -> Transformer:
        return self.deepspeed.module

    def begin(self, lr: float, step: int = 0) -> None:
        """Prepare for the first micro-step of an optimizer step at rate `lr`, after `step` steps of the run."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def micro_step(
        self, batch: Batch, total_targets: int, accept: Callable[[float], bool] = lambda nll: True
    ) -> Tensor:
        """Forward and backward of one micro-batch; returns its summed negative log-likelihood (0-d, detached).

        The gradient is that of the mean over the `total_targets` target tokens of the whole global batch:
        DeepSpeed averages over micro-batches and ranks, so each sum is scaled by their number first. Where the backward
        pass changes weights, `accept` is asked before it, with the sum; where it says no, there is none.
        """
        for cache in self.caches:
            cache.last_micro_step = self.deepspeed.is_gradient_accumulation_boundary()
        tokens = batch.tokens.to(self.world.device, non_blocking=True)
        targets = batch.targets.to(self.world.device, non_blocking=True)
        nll = self.deepspeed(tokens, targets)
        nll, seen, factor = spoiled(nll)
        if self.steps_in_backward and not accept(seen.item()):
            return seen
        scale = math.nan if fault_flag("nan_gradient") else factor * self.micro_batches / total_targets
        self.deepspeed.backward(nll * scale)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()
        return seen

    def update(self, limit: float = math.inf) -> Update:
        """Take the optimizer step after the last micro-step, unless its gradient is not finite or larger than `limit`.

        Nothing changes then: no weight, moment, basis or count (but see `Update.partly`). `limit` is equal on all
        ranks; below 0 it lets no gradient pass, and none is looked at. Where `steps_in_backward` it comes too late.
        Linears that are due merge after it (model/linear/merging.py).
        """
        update = self._update(limit)
        if update.applied:
            self.updates += 1
            for name, reset in merge_due(self.merging, self.updates, self.seed, self.world):
                self._reset_moments(name, reset)
        self.parameters_changed()
        return update

    def drop(self) -> Update:
        """Let go of the step's gradient, in place of `update`."""
        return self.update(-math.inf)

    def parameters_changed(self) -> None:
        """Forget what was kept of the old parameters."""
        for cache in self.caches:
            cache.clear()

    def close(self) -> None:
        """Take DeepSpeed off the model. It trains no more; its memory comes free with the last reference to this engine
        and its model, once the cycles among them are collected (`gc.collect()`)."""
        self.deepspeed.destroy()
        release(self.deepspeed)

    def whole_tensors(self) -> NamedTensors:
        """Every tensor of a run, whole and by name, whatever the path and the number of processes.

        Names: `model.<parameter or buffer>` (the fp32 master where there is one) and `optimizer.<parameter>.<state>`.
        Collective: all ranks ask for the same names in the same order.
        """
        for name, buffer in self._buffers():
            yield f"model.{name}", buffer.nbytes, partial(torch.Tensor.detach, buffer)
        for name, size, read in self._weights():
            yield f"model.{name}", size, read
        for name, size, read in self._optimizer_state():
            yield f"optimizer.{name}", size, read

    def restore(self, read: Callable[[str], Tensor], updates: int, warm_up: Batch, has_optimizer: bool = True) -> None:
        """Put weights, masters, moments and step counts back; without `has_optimizer` the optimizer stays fresh.

        `read(name)` gives a whole tensor by the names of `whole_tensors`; `updates` is the number of applied optimizer
        steps; `warm_up` is any batch of the run's shape.
        """
        self._restore(read, updates, warm_up, has_optimizer)
        self.updates = updates
        check_supports(self.model)
        self.parameters_changed()

    @abstractmethod
    def reduced_bytes(self) -> int:
        """Bytes of gradient that a rank hands to reductions in one optimizer step."""

    @abstractmethod
    def full_gradient_bytes(self) -> int:
        """What a rank would reduce in one optimizer step without sharding or projection."""

    def low_rank_matrices(self) -> int:
        """Matrices whose update takes the low-rank path."""
        return 0

    def figures(self) -> dict[str, float]:
        """What else is logged of a step, by TensorBoard tag."""
        return {}

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """The persistent buffers: sparse supports, 8-bit weights and frozen matrices."""
        names = self.model.state_dict().keys()
        return [(name, buffer) for name, buffer in self.model.named_buffers() if name in names]

    @abstractmethod
    def _update(self, limit: float) -> Update:
        """Take the optimizer step, as `update` says."""

    @abstractmethod
    def _reset_moments(self, name: str, reset: Reset) -> None:
        """Let `reset` change the moments of the parameter `name`, where this rank has them."""

    @abstractmethod
    def _weights(self) -> NamedTensors:
        """The parameters, or their fp32 masters."""

    @abstractmethod
    def _optimizer_state(self) -> NamedTensors:
        """Named <parameter>.<state>."""

    @abstractmethod
    def _restore(self, read: Callable[[str], Tensor], updates: int, warm_up: Batch, has_optimizer: bool) -> None:
        """Copy what `read` gives into buffers, parameters and optimizer."""
