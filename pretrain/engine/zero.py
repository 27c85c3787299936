"""The engine of element-wise AdamW under DeepSpeed's ZeRO, at stage 0 to 3."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.linear.merging import Reset
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.data.dataset import Batch
from pretrain.engine.base import Engine, Gathered, NamedTensors, Update
from pretrain.engine.merging import MOMENTS, reset_moments
from pretrain.engine.norm_watch import NormWatch
from pretrain.machine.distributed import World, import_deepspeed, sum_over_ranks
from pretrain.optim.own_optimizer import norms_of


class ZeroEngine(Engine):
    """ZeRO shards optimizer state (stage 1), gradients (2) and parameters (3); whole tensors are gathered on demand.

    At stage 0 DeepSpeed reduces the gradients, and norm, finite check and clipping are done here.
    """

    def __init__(
        self, model: Transformer, optimizer: torch.optim.Optimizer, config: Config, world: World, grad_accum_steps: int
    ):
        super().__init__(model, optimizer, config, world, grad_accum_steps)
        self.zero_stage = config.parallel.zero_stage
        self.offloads = config.parallel.offload == "optimizer"
        self.grad_clip = config.train.grad_clip
        if self.zero_stage == 0 and world.size == 1:
            self.deepspeed.enable_backward_allreduce = False  # it would copy every gradient for nothing
        if self.zero_stage < 3:
            self._fill_optimizer_state()
        self._watch = NormWatch(self.deepspeed.optimizer, world) if self.zero_stage else None

    def _update(self, limit: float) -> Update:
        return self._update_sharded(self._watch, limit) if self._watch else self._update_whole(limit)

    def reduced_bytes(self) -> int:
        if self.world.size == 1:
            return 0
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        once = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in parameters)
        # Stages 2 and 3 shard gradients, so every micro-step reduces; 0 and 1 reduce at the boundary.
        return once * (self.micro_batches // self.world.size if self.zero_stage >= 2 else 1)

    def full_gradient_bytes(self) -> int:
        return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in self.model.parameters())

    def _update_sharded(self, watch: NormWatch, limit: float) -> Update:
        watch.begin(limit)
        self.deepspeed.step()
        applied = self.deepspeed.was_step_applied()
        if self.offloads and not applied:
            # In bf16, DeepSpeed 0.19.8 would add the next gradients to the sums that are not finite.
            getattr(self.deepspeed.optimizer, "averaged_gradients", {}).clear()
        if limit < 0:
            return Update(math.nan, applied)
        norm = float(self.deepspeed.get_global_grad_norm())
        return Update(norm if math.isnan(watch.stopped_at) else watch.stopped_at, applied)

    def _update_whole(self, limit: float) -> Update:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm, norm_tensor = math.nan, None
        if limit >= 0:
            norms = norms_of([p.grad for p in parameters if p.grad is not None])  # in fp32, whatever the gradients are
            norm_tensor = torch.linalg.vector_norm(torch.stack(norms))
            norm = norm_tensor.item()
        if 0 <= limit < math.inf and self.world.size > 1:
            # Ranks have the same gradients, yet processors of two kinds may differ in a norm's last digit.
            norm = sum_over_ranks(self.world, norm if self.world.is_main else 0.0)[0]
        applies = math.isfinite(norm) and norm <= limit
        if not applies:
            for parameter in parameters:
                parameter.grad = None
        elif self.grad_clip and norm_tensor is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm_tensor)
        self.deepspeed.step()
        return Update(norm, applies)

    def _fill_optimizer_state(self) -> None:
        """Give every parameter (stage 1 and 2: every flat partition) its AdamW state before the first step.

        At stage 1 and 2, DeepSpeed 0.19.8 links the state fragments of all groups after the first group's first step,
        when the other groups have none yet; their moments would be out of reach for ever.
        """
        inner = self.deepspeed.basic_optimizer
        for group in inner.param_groups:
            for partition in group["params"]:
                inner.state[partition] = {
                    "step": torch.zeros((), dtype=torch.float32, device=partition.device),
                    "exp_avg": torch.zeros_like(partition),
                    "exp_avg_sq": torch.zeros_like(partition),
                }

    def _reset_moments(self, name: str, reset: Reset) -> None:
        """At stage 0, where every rank has all of them; at others nothing merges (pretrain.config.checks)."""
        reset_moments(self.optimizer.state[self.model.get_parameter(name)], reset)

    def _weights(self) -> NamedTensors:
        for name, parameter in self.model.named_parameters():
            yield name, self._master_bytes(parameter), self._reader(self._read_master, parameter)

    def _optimizer_state(self) -> NamedTensors:
        for name, parameter in self.model.named_parameters():
            for key in MOMENTS:
                yield f"{name}.{key}", self._master_bytes(parameter), self._reader(self._read_moment, parameter, key)

    def _restore(self, read: Callable[[str], Tensor], updates: int, warm_up: Batch, has_optimizer: bool) -> None:
        """Put all back. Sharded state exists only after an optimizer step: one is taken on `warm_up` at rate 0."""
        if self.zero_stage:
            self._materialise(warm_up)
        with torch.no_grad():
            for name, buffer in self._buffers():
                buffer.copy_(read(f"model.{name}"))
            for name, parameter in self.model.named_parameters():
                weight = read(f"model.{name}")
                self._write_working(parameter, weight)
                self._write_master(parameter, weight)
                for key in MOMENTS if has_optimizer else ():
                    self._write_moment(parameter, key, read(f"optimizer.{name}.{key}"))
        for partition, state in self.deepspeed.basic_optimizer.state.items():  # in host memory under parallel.offload
            state["step"] = torch.tensor(float(updates), dtype=torch.float32, device=partition.device)

    def _materialise(self, batch: Batch) -> None:
        self.begin(0.0)
        tokens, targets = batch.tokens.to(self.world.device), batch.targets.to(self.world.device)
        for _ in range(self.deepspeed.gradient_accumulation_steps()):
            self.deepspeed.backward(self.deepspeed(tokens, targets) * 0)
            self.deepspeed.step()

    def _master_bytes(self, parameter: nn.Parameter) -> int:
        numel = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty parameter behind
        return numel * (4 if self.zero_stage else parameter.element_size())

    def _reader(self, read: Callable[..., Tensor], *arguments: Any) -> Callable[[], Tensor]:
        return (Gathered if self.zero_stage else partial)(read, *arguments)

    def _read_master(self, parameter: nn.Parameter) -> Tensor:
        if self.zero_stage == 0:
            return parameter.detach()
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)

    def _read_moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        if self.zero_stage == 0:
            return self.optimizer.state[parameter][key]
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, key)

    def _write_working(self, parameter: nn.Parameter, weight: Tensor) -> None:
        """The copy that the forward pass uses: setting the fp32 master does not refresh it."""
        if self.zero_stage < 3:
            parameter.copy_(weight)
            return
        deepspeed = import_deepspeed()
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if self.world.is_main:
                parameter.copy_(weight)

    def _write_master(self, parameter: nn.Parameter, weight: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self.zero_stage in (1, 2):
            safe_set_full_fp32_param(parameter, weight.float())
        elif self.zero_stage == 3:
            safe_set_local_fp32_param(parameter, self._own_slice(parameter, weight))

    def _write_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.zero_stage == 0:
            self.optimizer.state[parameter][key].copy_(value)
        elif self.zero_stage < 3:
            safe_set_full_optimizer_state(parameter, value.float(), key)
        else:
            safe_set_local_optimizer_state(parameter, self._own_slice(parameter, value), key)

    def _own_slice(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """This rank's part of a stage-3 partition, padded as DeepSpeed pads it, whose setter fails on uneven ones."""
        length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        flat = F.pad(whole.float().flatten(), (0, length * self.world.size - whole.numel()))
        return flat.narrow(0, self.world.rank * length, length).to(self.world.device)
