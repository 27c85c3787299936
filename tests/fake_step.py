"""The real model, loss, optimizer and hooks on fake tensors of full size: shapes without data, so that the memory of a
7B step can be counted on any machine. The engine stays outside: this is zero_stage 0 in one process.

On a CPU's paths, or with `cuda` on those of a GPU, as far as tests/fake_gpu.py has them.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kernels.adam8bit.reference as adam8bit
import model.linear.int8 as int8
from kernels.adam8bit.state import codebook
from kernels.sparse_low_rank_linear.choice import Choice
from model.build import shape_of_model
from model.linear.sparse_low_rank import SparseLowRank
from model.linear.support.element import ElementSparse, step_caches
from model.rope import rotary_tables
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.optim import build_optimizer
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.own_optimizer import OwnOptimizer
from pretrain.optim.refresh import FIRST_STEPS, is_due
from pretrain.optim.target import Accumulator, Basis
from pretrain.optim.weight import Int8Weight

PERSISTENT = ("weights", "support", "moments", "projections", "gradients", "accumulators")
"""Items that the trace tells apart; all else is "working"."""

HOST = "host"
"""What is not in a device's memory, and not counted."""


class Trace(TorchDispatchMode):
    """Bytes of live storages by item, and the worst moment of each phase."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "build"
        self.total = 0
        self.items: Counter[str] = Counter()
        self.peaks: dict[str, tuple[int, dict[str, int]]] = {}
        self._live: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0  # fake tensors have no values: every number that the host reads is one, every test true
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor, "working")
        return out

    def mark(self, tensors: Iterable[Tensor], item: str) -> None:
        """These are `item`."""
        for tensor in tensors:
            self._see(tensor, item)
            key = tensor.untyped_storage()._cdata
            old, size = self._live[key]
            self._live[key] = (item, size)
            self.items[old] -= size
            self.items[item] += size
            self.total += (old == HOST) * size - (item == HOST) * size

    def begin(self, phase: str) -> None:
        self.phase = phase
        self.peaks[phase] = max(self.peaks.get(phase, (0, {})), (self.total, dict(self.items)), key=lambda p: p[0])

    def forget(self) -> None:
        self.peaks.clear()

    def _see(self, tensor: Tensor, item: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        self._live[key] = (item, size)
        self.items[item] += size
        self.total += size
        weakref.finalize(storage, self._free, key)
        if self.total > self.peaks.get(self.phase, (0,))[0]:
            self.peaks[self.phase] = (self.total, dict(self.items))

    def _free(self, key: int) -> None:
        item, size = self._live.pop(key)
        self.items[item] -= size
        self.total -= size if item != HOST else 0


@dataclass
class FakeStep:
    """What one step took, after a first one had made all that stays, unless it was there."""

    peaks: dict[str, tuple[int, dict[str, int]]] = field(default_factory=dict)
    """(total, by item) of the worst moment of forward, backward and update."""
    after_forward: int = 0
    """Bytes that the forward pass leaves for the backward pass: the most of all micro-steps."""

    @property
    def total(self) -> int:
        return max(total for total, _ in self.peaks.values())


def fake_step(
    config: Config,
    updates: int | None = None,
    choice: Choice | None = None,
    cuda: bool = False,
    trace: Trace | None = None,
) -> FakeStep:
    """The step after `updates` updates, else that of the first ones in which most bytes of matrices are due for a new
    basis; bf16 computation. `choice` of all linears. `trace` may be one that sees more.
    """
    compute, weights = torch.bfloat16, config.optimizer.weights
    param = torch.float32 if weights == "fp32_master" else compute
    every = config.train.checkpoint_every_layers
    shape = shape_of_model(config.model, config.linear, compute, every, weights == "int8").to(param)
    micro_steps = min(2, config.train.global_batch_size // config.train.micro_batch_size)
    step, trace = FakeStep(), trace or Trace()
    with _own_caches(), _paths(cuda), _marking(trace), FakeTensorMode(), trace:
        model = _filled(shape)
        trace.mark(model.parameters(), "weights")
        _mark_buffers(trace, model)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(partial(_mark_gradient, trace))
        optimizer = build_optimizer(config.optimizer, model, grad_clip=config.train.grad_clip)
        _mark_sinks(trace, optimizer)
        _choose(model, choice)
        last = _busiest(optimizer) if updates is None else updates
        for number in (last,) if cuda and isinstance(optimizer, OwnOptimizer) else (0, last):
            if isinstance(optimizer, OwnOptimizer):
                _at_update(optimizer, number)
            _mark_state(trace, optimizer, model)
            trace.forget()
            step.after_forward = 0
            for micro_step in range(micro_steps):
                for cache in step_caches(model):
                    cache.last_micro_step = micro_step == micro_steps - 1
                _micro_step(config, model, trace, step)
            trace.begin("update")
            if config.train.grad_clip and not isinstance(optimizer, OwnOptimizer):
                nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            for cache in step_caches(model):
                cache.clear()
    step.peaks = trace.peaks
    return step


@contextlib.contextmanager
def _paths(cuda: bool) -> Iterator[None]:
    """Of a GPU inside, or as they are."""
    if not cuda:
        yield
        return
    from tests.fake_gpu import gpu_paths  # needs Triton

    with gpu_paths():
        yield


@contextlib.contextmanager
def _own_caches() -> Iterator[None]:
    """Inside, tensors that functions remember are made anew: fake ones must not get out, nor real ones in."""
    clear = [cached.cache_clear for cached in (rotary_tables, codebook, adam8bit._hyper_parameters)]
    clear.append(int8._scratch.clear)
    for forget in clear:
        forget()
    try:
        yield
    finally:
        for forget in clear:
            forget()


@contextlib.contextmanager
def _marking(trace: Trace) -> Iterator[None]:
    """Inside, new bases and projected gradients are marked as soon as they take their places.

    Host memory that is no device's is not counted, and what is read from it is a copy.
    """
    write_basis, write_sum, read_sum = Basis.write, Accumulator.write, Accumulator.read

    def write(self: Basis, P: Tensor) -> None:
        write_basis(self, P)
        trace.mark(self.tensors.values(), "projections")

    def write_accumulator(self: Accumulator, R: Tensor) -> None:
        write_sum(self, R)
        assert self._kept is not None
        trace.mark([self._kept], HOST if self.host else "accumulators")

    def read_accumulator(self: Accumulator) -> Tensor:
        return read_sum(self).clone() if self.host else read_sum(self)

    with (
        mock.patch.object(Basis, "write", write),
        mock.patch.object(Accumulator, "write", write_accumulator),
        mock.patch.object(Accumulator, "read", read_accumulator),
    ):
        yield


def _micro_step(config: Config, model: Transformer, trace: Trace, step: FakeStep) -> None:
    trace.begin("forward")
    batch, seq_len = config.train.micro_batch_size, config.train.seq_len
    tokens, targets = (torch.zeros(batch, seq_len, dtype=torch.int64) for _ in range(2))
    before = trace.items["working"]
    nll = model(tokens, targets)
    step.after_forward = max(step.after_forward, trace.items["working"] - before)
    _mark_derived(trace, model)
    trace.begin("backward")
    (nll * 1.0).backward()


def _filled(shape: Transformer) -> Transformer:
    for module in shape.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return shape


def _mark_buffers(trace: Trace, model: Transformer) -> None:
    for module in model.modules():
        trace.mark(module.buffers(recurse=False), "weights" if isinstance(module, int8.Int8Linear) else "support")


def _mark_sinks(trace: Trace, optimizer: Any) -> None:
    """The gradients of 8-bit linears: each before the optimizer sees it, and their sums."""
    for target in optimizer.targets if isinstance(optimizer, MatrixOptimizer) else ():
        if isinstance(target.weight, Int8Weight):
            linear = target.weight.linear
            linear.sink = partial(_marked, trace, target.weight, linear.sink)


def _mark_gradient(trace: Trace, parameter: Tensor) -> None:
    if parameter.grad is not None:  # a linear that sums W's gradient hands out none
        trace.mark([parameter.grad], "gradients")


def _marked(trace: Trace, weight: Int8Weight, sink: Any, gradient: Tensor) -> None:
    trace.mark([gradient], "gradients")
    sink(gradient)
    if weight.grad is not None:
        trace.mark([weight.grad], "gradients")


def _busiest(optimizer: Any) -> int:
    """After the first step, where another is as busy."""
    if not isinstance(optimizer, MatrixOptimizer):
        return 1
    due = Counter({1: 0})
    for number in range(FIRST_STEPS + 1):
        for target in optimizer.targets if optimizer.rule.uses_basis else ():
            if is_due(optimizer.config, target.index, len(optimizer.targets), number):
                due[number] += target.matrix.m * target.matrix.n
    return max(due, key=lambda number: (due[number], number > 0))


def _at_update(optimizer: OwnOptimizer, number: int) -> None:
    """After `number` updates: matrices are due as the schedule has it that an adaptive one begins with."""
    optimizer.updates = number
    for target in optimizer.targets if isinstance(optimizer, MatrixOptimizer) else ():
        if target.gap is not None:
            target.gap.wait = int(not is_due(optimizer.config, target.index, len(optimizer.targets), number))


def _choose(model: Transformer, choice: Choice | None) -> None:
    for module in model.modules():
        if choice and isinstance(module, SparseLowRank) and isinstance(module.support, ElementSparse):
            module.support.choice = choice


def _mark_state(trace: Trace, optimizer: Any, model: Transformer) -> None:
    if not isinstance(optimizer, OwnOptimizer):
        for state in optimizer.state.values():
            trace.mark((v for v in state.values() if isinstance(v, Tensor)), "moments")
        return
    for name, _, tensor, _ in optimizer.tensors():
        own = name.rpartition(".")[2]
        trace.mark([tensor], "projections" if own in ("P", "P_codes", "P_scales", "P_zeros") else "moments")


def _mark_derived(trace: Trace, model: Transformer) -> None:
    """What linears have made of their supports."""
    for module in model.modules():
        view = getattr(module, "_view", None)
        if view is not None:
            trace.mark((t for t in tree_leaves(view[2]._derived) if isinstance(t, Tensor)), "support")
