"""One optimizer step of the real model, loss, hooks and optimizer, on tensors without data."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from model.linear.int8 import Int8Linear
from model.linear.support.element import step_caches
from pretrain.config.schema import Config
from pretrain.engine.kernel_choices import apply
from pretrain.engine.merging import merging_linears, reset_moments
from pretrain.memory_plan.ledger import Ledger, Moment, Phase
from pretrain.memory_plan.offload import pinned
from pretrain.memory_plan.rest import Silent, busy_ranks, shape_of, sharded_state, weight_buffers
from pretrain.memory_plan.trace import META, Trace, tracing
from pretrain.memory_plan.zero import BUCKET
from pretrain.optim import build_optimizer
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.own_optimizer import OwnOptimizer
from pretrain.optim.refresh import FIRST_STEPS, is_due

BASES = ("P", "P_codes", "P_scales", "P_zeros")
"""State that is a basis."""


@dataclass(frozen=True)
class Observation:
    """What a step takes in one process."""

    phases: dict[Phase, Moment]
    host: int
    """Bytes in host memory that is no device's."""

    @property
    def total(self) -> int:
        return max(moment.total for moment in self.phases.values())


def observe(
    config: Config, world_size: int, cuda: bool, kernels: dict[str, Any], refreshes: bool = True
) -> Observation:
    """The busiest step of a stage's configuration in the process that has most, its linears computing as `kernels`
    records; without `refreshes`, a step in which no matrix is due for a new basis."""
    step = partial(_Step, config, world_size, cuda, kernels)
    if config.parallel.zero_stage > 0:
        return step(0).zero()
    observed = [step(rank).own(refreshes) for rank in busy_ranks(config, world_size)]
    return max(observed, key=lambda observation: observation.total)


class _Step:
    """The model and what steps it, for one observation."""

    def __init__(self, config: Config, world_size: int, cuda: bool, kernels: dict[str, Any], rank: int):
        self.config, self.world_size, self.cuda, self.rank = config, world_size, cuda, rank
        self.ledger = Ledger()
        self.model = shape_of(config)
        apply(self.model, kernels)
        self.ledger.mark(self.model.buffers(), "support")
        for module in self.model.modules():
            self.ledger.mark(weight_buffers(module), "weights")
        self.micro_steps = min(
            2, max(1, config.train.global_batch_size // (config.train.micro_batch_size * world_size))
        )

    def zero(self) -> Observation:
        """ZeRO is arithmetic: what DeepSpeed keeps, and what it does with each gradient."""
        config, ledger = self.config, self.ledger
        sharded = sharded_state(config, self.model, self.world_size, self.cuda)
        ledger.mark(self.model.parameters(), "weights")
        for parameter in self.model.parameters():
            ledger.drop(parameter.data)  # a rank may have a share of them alone
        sharded.begin(ledger)
        gradients = sharded.gradients(ledger)

        def arrived(name: str, parameter: Tensor) -> None:
            assert parameter.grad is not None
            ledger.drop(parameter.grad)
            gradients.receive(name, parameter.numel())
            parameter.grad = None

        for name, parameter in self.model.named_parameters():
            parameter.register_post_accumulate_grad_hook(partial(arrived, name))
        with tracing(ledger, self.cuda, config.kernels.backend) as trace:
            self._keep_apart(trace)
            for number in range(self.micro_steps):
                gradients.last_micro_step = number == self.micro_steps - 1
                self._micro_step(trace, gradients.last_micro_step, gradients.begin_forward)
                gradients.end_backward()
            sharded.update(ledger, gradients)
        return Observation(ledger.moments(), sharded.host + self._pinned())

    def own(self, refreshes: bool) -> Observation:
        """Stage 0: the optimizer as it is."""
        config, ledger = self.config, self.ledger
        ledger.mark(self.model.parameters(), "weights")
        for parameter in self.model.parameters():
            parameter.register_post_accumulate_grad_hook(self._mark_gradient)
        exchange = Silent(self.rank, self.world_size, wire=next(self.model.parameters()).dtype)
        with tracing(ledger, self.cuda, config.kernels.backend) as trace:
            clip = config.train.grad_clip
            optimizer = build_optimizer(config.optimizer, self.model, grad_clip=clip, exchange=exchange)
            self._keep_apart(trace)
            self._mark_sinks()
            self._fill_state(optimizer)
            self._mark_state(optimizer)
            if isinstance(optimizer, OwnOptimizer):
                _at_update(optimizer, refreshes)
            for number in range(self.micro_steps):
                self._micro_step(trace, number == self.micro_steps - 1)
                self._mark_sums(optimizer)
            if self.world_size > 1 and not isinstance(optimizer, OwnOptimizer):  # DeepSpeed's, of whole gradients
                numel = sum(p.numel() for p in self.model.parameters())
                ledger.touch(min(BUCKET, numel) * self._stored(), "reduction")
            ledger.begin("update")
            if clip and not isinstance(optimizer, OwnOptimizer):
                nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            self._merge(optimizer)
            self._mark_state(optimizer)
            self._name_what_is_kept()
            if isinstance(optimizer, OwnOptimizer):
                optimizer.unhook()
        host = self._pinned()
        del self.model  # its parameters hold this step by their hooks: what linears share shall not outlive it
        return Observation(ledger.moments(), host)

    def _merge(self, optimizer: torch.optim.Optimizer) -> None:
        """As the engine does after the update in which all are due (`Engine.update`)."""
        for linear in merging_linears(self.model):
            for own, reset in linear.merge(0, linear.busiest).items():
                name = f"{linear.name}.{own}"
                if isinstance(optimizer, OwnOptimizer):
                    optimizer.reset_moments(name, reset)
                else:
                    reset_moments(optimizer.state[self.model.get_parameter(name)], reset)

    def _pinned(self) -> int:
        """Bytes of host memory for the sums and activations there."""
        return sum(pinned(size) for size in self.ledger.alive("host"))

    def _stored(self) -> int:
        """Bytes of a number of the parameters."""
        return next(self.model.parameters()).element_size()

    def _micro_step(self, trace: Trace, last: bool, begin: Callable[[], None] = lambda: None) -> None:
        config, ledger = self.config, self.ledger
        ledger.begin("forward")
        begin()
        size = (config.train.micro_batch_size, config.train.seq_len)
        for cache in step_caches(self.model):
            cache.last_micro_step = last
        tokens, targets = (torch.empty(size, dtype=torch.int64, device=META) for _ in range(2))
        nll = self.model(tokens, targets)
        self._mark_derived()
        ledger.settle("temporaries", "activations")
        ledger.begin("backward")
        trace.recomputes = True
        (nll * 1.0).backward()
        trace.recomputes = False

    def _keep_apart(self, trace: Trace) -> None:
        """What the head makes is the loss's."""

        def enter(*_: Any) -> None:
            trace.scope = "loss"

        def leave(*_: Any) -> None:
            trace.scope = None

        self.model.lm_head.register_forward_pre_hook(enter)
        self.model.lm_head.register_forward_hook(leave)

    def _mark_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:  # a linear that sums W's gradient hands out none
            self.ledger.mark([parameter.grad], "gradients")

    def _mark_sinks(self) -> None:
        """Gradients that a linear hands to the optimizer itself."""

        def marked(sink: Callable[[Tensor], None], gradient: Tensor) -> None:
            self.ledger.mark([gradient], "gradients")
            sink(gradient)

        for module in self.model.modules():
            if isinstance(module, Int8Linear) and module.sink is not None:
                module.sink = partial(marked, module.sink)

    def _fill_state(self, optimizer: torch.optim.Optimizer) -> None:
        """As the engine does before the first step (`Engine._fill_optimizer_state`)."""
        if isinstance(optimizer, OwnOptimizer):
            return
        optimizer._need_device_dtype_check_for_fused = False  # type: ignore[attr-defined]
        for parameter in self.model.parameters():
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=META),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def _mark_state(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, OwnOptimizer):
            for state in optimizer.state.values():
                self.ledger.mark((v for v in state.values() if isinstance(v, Tensor)), "moments")
            return
        for name, owner, tensor, _ in optimizer.tensors():
            if owner in (-1, self.rank):
                self.ledger.mark([tensor], "projections" if name.rpartition(".")[2] in BASES else "moments")

    def _mark_sums(self, optimizer: torch.optim.Optimizer) -> None:
        """Between micro-steps: whole gradients and projected ones."""
        for target in optimizer.targets if isinstance(optimizer, MatrixOptimizer) else ():
            if target.weight.grad is not None:
                self.ledger.mark([target.weight.grad], "gradients")
            if not target.sum.empty and not target.sum.host:
                self.ledger.mark([target.sum.read()], "accumulators")

    def _mark_derived(self) -> None:
        """What linears have made of their supports."""
        for module in self.model.modules():
            view = getattr(module, "_view", None)
            if view is not None:
                self.ledger.mark((t for t in tree_leaves(vars(view[2])) if isinstance(t, Tensor)), "support")

    def _name_what_is_kept(self) -> None:
        """What outlives a step and has no other name."""
        for item in ("activations", "weight_copies", "temporaries"):
            self.ledger.settle(item, "kept_weights")
        for cache in step_caches(self.model):
            cache.clear()


def _at_update(optimizer: OwnOptimizer, refreshes: bool) -> None:
    """Before the update in which most bytes of matrices are due for a new basis, or without `refreshes` fewest; after
    the first one, where another is as busy. An adaptive schedule begins as the fixed one."""
    optimizer.updates = 1
    if not isinstance(optimizer, MatrixOptimizer) or not optimizer.rule.uses_basis:
        return
    targets, config = optimizer.targets, optimizer.config

    def due(number: int) -> int:
        return sum(t.matrix.m * t.matrix.n for t in targets if is_due(config, t.index, len(targets), number))

    numbers = range(FIRST_STEPS + 2)
    optimizer.updates = max(numbers, key=lambda n: (due(n) if refreshes else -due(n), n > 0))
    for target in targets:
        if target.gap is not None:
            target.gap.wait = int(not is_due(config, target.index, len(targets), optimizer.updates))
