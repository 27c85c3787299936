"""The engine: micro-steps, the update with its finite check, and the learning rate."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.linear.support.element import step_caches
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.data.dataset import Batch
from pretrain.distributed import World
from pretrain.engine.accelerator import import_deepspeed
from pretrain.engine.release import release
from pretrain.engine.settings import deepspeed_settings
from pretrain.fault import fault_flag
from pretrain.optim.sharded_optimizer import norms_of


@dataclass(frozen=True)
class Update:
    """What an optimizer step did: the gradient's global L2 norm before clipping, and whether it was applied."""

    grad_norm: float
    applied: bool


class Engine:
    """DeepSpeed around a model and an element-wise optimizer, at ZeRO stage 0 to 3."""

    norm_name = "grad_norm"
    """Under which `Update.grad_norm` is logged."""

    def __init__(
        self,
        model: Transformer,
        optimizer: torch.optim.Optimizer,
        config: Config,
        world: World,
        grad_accum_steps: int,
        bf16: bool,
    ):
        self.stage = config.parallel.zero_stage
        self.offloads = config.parallel.offload == "optimizer"
        self.world = world
        self.optimizer = optimizer
        self.grad_clip = config.train.grad_clip
        self.micro_batches = grad_accum_steps * world.size
        self.caches = step_caches(model)
        self.deepspeed, *_ = import_deepspeed().initialize(
            model=model, optimizer=optimizer, config=deepspeed_settings(config, grad_accum_steps, bf16)
        )
        if self.stage == 0 and world.size == 1:
            self.deepspeed.enable_backward_allreduce = False  # it would copy every gradient for nothing
        if self.stage < 3:
            self._fill_optimizer_state()

    @property
    def model(self) -> Transformer:
        return self.deepspeed.module

    def micro_step(self, batch: Batch, total_targets: int) -> Tensor:
        """Forward and backward of one micro-batch; returns its summed negative log-likelihood (0-d, detached).

        The gradient is that of the mean over the `total_targets` target tokens of the whole global batch:
        DeepSpeed averages over micro-batches and ranks, so each sum is scaled by their number first.
        """
        for cache in self.caches:
            cache.last_micro_step = self.deepspeed.is_gradient_accumulation_boundary()
        tokens = batch.tokens.to(self.world.device)
        targets = batch.targets.to(self.world.device)
        nll = self.deepspeed(tokens, targets)
        scale = math.nan if fault_flag("nan_gradient") else self.micro_batches / total_targets
        self.deepspeed.backward(nll * scale)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()
        return nll.detach()

    def begin(self, lr: float, step: int = 0) -> None:
        """Prepare for the first micro-step of an optimizer step at rate `lr`, after `step` steps of the run."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def update(self) -> Update:
        """The optimizer step after the last micro-step; skipped when the gradient is not finite."""
        update = self._update_unsharded() if self.stage == 0 else self._update_sharded()
        self.parameters_changed()
        return update

    def parameters_changed(self) -> None:
        """Forget what was kept of the old parameters."""
        for cache in self.caches:
            cache.clear()

    def _update_sharded(self) -> Update:
        self.deepspeed.step()
        applied = self.deepspeed.was_step_applied()
        if self.offloads and not applied:
            # In bf16, DeepSpeed 0.19.8 would add the next gradients to the sums that are not finite.
            getattr(self.deepspeed.optimizer, "averaged_gradients", {}).clear()
        return Update(float(self.deepspeed.get_global_grad_norm()), applied)

    def _update_unsharded(self) -> Update:
        """Stage 0: the engine has reduced the gradients; norm, finite check and clipping are Sparlow's."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norms = norms_of([p.grad for p in parameters if p.grad is not None])  # in fp32, whatever the gradients are
        norm_tensor = torch.linalg.vector_norm(torch.stack(norms))
        norm = norm_tensor.item()
        finite = math.isfinite(norm)
        if not finite:
            for parameter in parameters:
                parameter.grad = None
        elif self.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm_tensor)
        self.deepspeed.step()
        return Update(norm, finite)

    def close(self) -> None:
        """Take DeepSpeed off the model. It trains no more; its memory comes free with the last reference to this engine
        and its model, once the cycles among them are collected (`gc.collect()`)."""
        self.deepspeed.destroy()
        release(self.deepspeed)

    def reduced_bytes(self) -> int:
        """Bytes of gradient that a rank hands to a reduction in one optimizer step."""
        if self.world.size == 1:
            return 0
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        once = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in parameters)
        # Stages 2 and 3 shard gradients, so every micro-step reduces; 0 and 1 reduce at the boundary.
        return once * (self.micro_batches // self.world.size if self.stage >= 2 else 1)

    def figures(self) -> dict[str, float]:
        """What else is logged of a step, by TensorBoard tag."""
        return {}

    def low_rank_matrices(self) -> int:
        """Matrices whose update takes the low-rank path."""
        return 0

    def full_gradient_bytes(self) -> int:
        """What a rank would reduce in one optimizer step without sharding or projection."""
        return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in self.model.parameters())

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
