"""Memory of the real engine, beside the plan: every live tensor of two steps on a CPU.

Driven by tests/pretrain/memory_plan/test_zero_truth.py, and run by it under torchrun. Arguments: a folder, then one set
of overrides per engine, each joined by commas; `RANK.json` in the folder gets the phases of each.
"""

import contextlib
import gc
import json
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from deepspeed.comm.torch import TorchBackend
from deepspeed.runtime.comm import coalesced_collectives
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pretrain.engine.base as engine_module
from model.build import shape_of_model
from pretrain.config import load_config
from pretrain.config.schema import Config
from pretrain.data.dataset import Batch
from pretrain.engine.build import build_engine
from pretrain.engine.deepspeed import deepspeed_settings
from pretrain.engine.kernel_choices import apply, decide
from pretrain.loop.build import build, computed_in, eight_bit
from pretrain.machine import distributed
from pretrain.machine.distributed import World
from pretrain.memory_plan import observe, offload, zero
from pretrain.memory_plan.memory import MemoryPlan, plan_memory

CONFIG = Path(__file__).parents[1] / "configs" / "llama_60m_dense.toml"

MODEL = {
    "model.dim": 256,
    "model.n_layers": 8,
    "model.n_heads": 4,
    "model.ffn_dim": 688,
    "model.vocab_size": 2048,
    "model.max_seq_len": 64,
    "train.seq_len": 64,
    "train.micro_batch_size": 1,
    "train.grad_clip": 1.0,
    "kernels.backend": "torch",
}
"""7.4 million parameters, in steps of two micro-steps; activations that do not hide them."""

SIZES = {"BUCKET": 2_000_000, "MOST_GATHERED": 3_000_000, "SUB_GROUP": 1_500_000}
"""In place of DeepSpeed's, which are so large that a small model is nothing beside them."""

Phases = dict[str, tuple[int, dict[str, int]]]
"""(total, by item) of the worst moment of forward, backward and update."""


class RealTrace(TorchDispatchMode):
    """Bytes of live storages by item, and the worst moment of each phase, of tensors that have values."""

    paused = False
    """While gloo sends: it copies what NCCL does not, and its threads let go of tensors when they like."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "build"
        self.total = 0
        self.items: Counter[str] = Counter()
        self.peaks: dict[str, tuple[int, dict[str, int]]] = {}
        self._live: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu" and not self.paused:
                sparse = tensor.layout == torch.sparse_csr
                for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()) if sparse else (tensor,):
                    self._see(part)
        return out

    def mark(self, tensors: Iterable[Tensor], item: str) -> None:
        """These are `item`."""
        for tensor in tensors:
            self._see(tensor)
            key = tensor.untyped_storage()._cdata
            old, size = self._live[key]
            self._live[key] = (item, size)
            self.items[old] -= size
            self.items[item] += size

    def begin(self, phase: str) -> None:
        self.phase = phase
        self.peaks[phase] = max(self.peaks.get(phase, (0, {})), (self.total, dict(self.items)), key=lambda p: p[0])

    def forget(self) -> None:
        self.peaks.clear()

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        self._live[key] = ("working", size)
        self.items["working"] += size
        self.total += size
        weakref.finalize(storage, self._free, key)
        if self.total > self.peaks.get(self.phase, (0,))[0]:
            self.peaks[self.phase] = (self.total, dict(self.items))

    def _free(self, key: int) -> None:
        item, size = self._live.pop(key)
        self.items[item] -= size
        self.total -= size

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def mark_new(self, tensors: Iterable[Tensor | None], item: str) -> None:
        """Mark what has no name yet: a gradient may lie in a bucket."""
        for tensor in tensors:
            if tensor is not None and tensor.numel():
                self._see(tensor)
                if self._live[tensor.untyped_storage()._cdata][0] == "working":
                    self.mark([tensor], item)


@contextlib.contextmanager
def small_messages() -> Iterator[None]:
    """Inside, DeepSpeed and the plan have SIZES."""
    own = {
        "reduce_bucket_size": SIZES["BUCKET"],
        "stage3_max_live_parameters": SIZES["MOST_GATHERED"],
        "stage3_max_reuse_distance": SIZES["MOST_GATHERED"],
        "stage3_prefetch_bucket_size": SIZES["MOST_GATHERED"] // 20,  # as DeepSpeed's are to each other
        "stage3_param_persistence_threshold": 1000,
        "sub_group_size": SIZES["SUB_GROUP"],
    }

    def settings(*arguments: Any) -> dict[str, Any]:
        changed = deepspeed_settings(*arguments)
        changed["zero_optimization"] |= own
        return changed

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(engine_module, "deepspeed_settings", settings))
        for module in (zero, offload, observe):
            for name in SIZES.keys() & vars(module).keys():
                stack.enter_context(mock.patch.object(module, name, SIZES[name]))
        yield


def configuration(overrides: Iterable[str], world_size: int) -> Config:
    both = (MODEL | {"train.global_batch_size": 2 * world_size}).items()
    return load_config(CONFIG, [*(f"--{key}={value}" for key, value in both), *overrides])


def planned(overrides: Iterable[str], world_size: int) -> MemoryPlan:
    config = configuration(overrides, world_size)
    shape = shape_of_model(config.model, config.linear, computed_in(config))
    kernels = decide(shape, config, {}, config.train.global_batch_size // world_size, torch.device("cpu"))
    with small_messages():
        return plan_memory(config, world_size, cuda=False, kernels=kernels)


def measured(overrides: Iterable[str], world: World) -> Phases:
    """Two optimizer steps; of the second one, the worst moment of each phase."""
    config = configuration(overrides, world.size)
    random = torch.Generator().manual_seed(world.rank)
    size = (config.train.micro_batch_size, config.train.seq_len)
    trace = RealTrace()
    with small_messages(), trace:
        model = build(config, world.device, how=eight_bit(config, world.device))
        micro_steps = config.train.global_batch_size // world.size
        apply(model, decide(model, config, {}, micro_steps, world.device))
        engine = build_engine(model, config, world, micro_steps)
        with _phases(trace, engine):
            for _ in range(2):
                gc.collect()
                _mark(trace, engine)
                trace.forget()
                engine.begin(1e-3)
                for _ in range(micro_steps):
                    trace.begin("forward")
                    tokens, targets = (torch.randint(config.model.vocab_size, size, generator=random) for _ in "ab")
                    engine.micro_step(Batch(tokens, targets), config.train.global_batch_size * config.train.seq_len)
                    del tokens, targets
                    _mark(trace, engine)
                trace.begin("update")
                assert engine.update().applied
        peaks = dict(trace.peaks)
    engine.close()
    return peaks


def _mark(trace: RealTrace, engine: Any) -> None:
    """Name what there is between two micro-steps."""
    if not getattr(engine, "zero_stage", 0):
        return
    optimizer, inner = engine.deepspeed.optimizer, engine.deepspeed.basic_optimizer
    parameters = list(engine.model.parameters())
    trace.mark_new((getattr(p, "ds_tensor", p).data for p in parameters), "weights")
    masters = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    masters = masters or [p for group in inner.param_groups for p in group["params"]]
    trace.mark_new((p.data for p in masters), "masters")
    trace.mark_new((t for state in inner.state.values() for t in state.values() if isinstance(t, Tensor)), "moments")
    messages = [getattr(optimizer, name, None) for name in dir(optimizer) if name.startswith("temp_grad_buffer")]
    messages += getattr(optimizer, "param_buffer_of_bit16_for_cpu_offload_groups", [])
    messages += [getattr(bucket, "buffer", None) for bucket in getattr(optimizer, "ipg_buckets", {}).values()]
    trace.mark_new((t for t in tree_leaves(messages) if isinstance(t, Tensor)), "reduction")
    sums = [p.grad for p in masters] + [getattr(p, "grad_accum", None) for p in parameters]
    sums += getattr(optimizer, "accumulated_grads_in_cpu", {}).values()
    sums += getattr(optimizer, "fp32_groups_gradients_flat", [])
    sums += [getattr(optimizer, "grad_partitions_flat_buffer", None)]
    for kept in ("averaged_gradients", "all_grad_tensors"):
        sums += [t for group in getattr(optimizer, kept, {}).values() for t in group or ()]
    trace.mark_new(sums, "accumulators")
    trace.mark_new((p.grad for p in parameters), "gradients")


@contextlib.contextmanager
def _phases(trace: RealTrace, engine: Any) -> Iterator[None]:
    """Inside, the backward pass is a phase of its own, and gloo's copies do not count."""
    backward, reduce = engine.deepspeed.backward, TorchBackend.all_reduce
    scatter = coalesced_collectives._torch_reduce_scatter_fn

    def begin(loss: Tensor) -> Any:
        trace.begin("backward")
        return backward(loss)

    def reduced(
        backend: TorchBackend, tensor: Tensor, *arguments: Any, async_op: bool = False, **keywords: Any
    ) -> None:
        assert not async_op
        with trace.pause():
            sent = tensor.clone()
            reduce(backend, sent, *arguments, **keywords)
            tensor.copy_(sent)

    def scattered(whole: Tensor, part: Tensor, **keywords: Any) -> None:
        with trace.pause():
            received = torch.empty_like(part)
            scatter(whole.clone(), received, **keywords)
            part.copy_(received)

    with (
        mock.patch.object(engine.deepspeed, "backward", begin),
        mock.patch.object(TorchBackend, "all_reduce", reduced),
        mock.patch.object(coalesced_collectives, "_torch_reduce_scatter_fn", scattered),
    ):
        yield


if __name__ == "__main__":
    with distributed.processes() as world:
        all_phases = [measured(overrides.split(","), world) for overrides in sys.argv[2:]]
        Path(sys.argv[1], f"{world.rank}.json").write_text(json.dumps(all_phases))
