"""The figures of a run before it runs: parameters, tokens and FLOPs, by arithmetic alone."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from model.counts import count_parameters, eight_bit_work, training_flops
from model.errors import UserError
from pretrain.config.schema import Config, Stage
from pretrain.data.open import planned
from pretrain.engine.kernel_choices import describe, recorded
from pretrain.machine.distributed import require_divisible
from pretrain.machine.gpus import Gpu
from pretrain.memory_plan.cards import fitting, fragmentation, reserve
from pretrain.memory_plan.copies import planned_copies
from pretrain.memory_plan.memory import plan_stage, worst_of
from pretrain.memory_plan.transfers import transfers

MFU = 0.4
"""Assumed part of a GPU's peak that training reaches.

An assumption, not a measurement. LLMQ, written in CUDA for such cards, trains a dense 7B in bf16 at 2,775 tokens/s on
an RTX 4090 and 892 on an RTX 5060 Ti (arXiv 2512.15306). At six FLOPs per token for each of the 7.07e9 parameters that
a Qwen2.5-7B multiplies with, that is 0.71 and 0.80 of the peaks in pretrain.machine.gpus, which few reach. Recomputed
activations count nothing: with all of them recomputed, 0.4 stands for products at 0.53 of the peak.
"""

EIGHT_BIT_RATE = 2
"""Assumed rate of products in eight bits, over that of bf16, of a GPU without a name."""


def parse_speed(tflops: float | None, mfu: float | None) -> float:
    """FLOP/s that one GPU reaches, from its peak in TFLOP/s; 0 when no peak is given. UserError for nonsense."""
    if tflops is None:
        if mfu is not None:
            raise UserError("--mfu is a part of a GPU's peak: give that too, e.g. --gpu-tflops 165 or --gpu 'RTX 4090'")
        return 0.0
    if not 0 < tflops < math.inf:
        raise UserError(f"--gpu-tflops {tflops:g} is no peak; write TFLOP/s in bf16, e.g. 165")
    part = MFU if mfu is None else mfu
    if not 0 < part <= 1:
        raise UserError(f"--mfu {part:g} is no part of a peak; write a number up to 1, e.g. {MFU}")
    return part * tflops * 1e12


def plan(
    config: Config, world_size: int, card_bytes: int = 0, speed: float = 0.0, gpu: Gpu | None = None
) -> dict[str, Any]:
    """Figures of `sparlow plan --json` for `world_size` processes, on GPUs of `card_bytes` if given.

    `seconds`: all FLOPs at `speed` FLOP/s on each GPU; None without a speed. Those in eight bits (`flops_eight_bit`) go
    by as much faster as `gpu` multiplies such numbers, twice where none is named, and what is moved to quantise goes at
    its bandwidth; None where it has no FP8. It leaves out evaluations, checkpoints,
    what GPUs tell each other, and the update's own reads and writes: a 7B's some 20 GB of weights, gradients and
    moments take as long as the FLOPs of fewer than 200 tokens. `modelled_tokens_per_second`, over all GPUs, follows.

    Memory is that of the rank and the growth stage with most: `memory_bytes` by item at the worst moment of an
    optimizer step, with their sum as `total`; `memory_phases` the same for each part of the step; `reserve` what a GPU
    must have besides; `host_memory_bytes` what a process keeps in the host's memory instead; `transfers` how long the
    activations among it are on their way; `checkpoint_copy_bytes` what a process copies there of a checkpoint that is
    written in the background.

    `sources`: share, tokens and epochs of each corpus of a mixture.

    `kernels`: for each stage the record of how its linears are taken to compute, which FLOPs and memory follow.
    `tokens_at_most`: whether rows are padded, so that the run sees fewer tokens than `tokens`.
    """
    train, steps = config.train, config.schedule.total_steps
    tokens_per_update = train.global_batch_size * train.seq_len
    micro_steps = require_divisible(train.global_batch_size, train.micro_batch_size, world_size)
    plans = [plan_stage(stage.config, world_size, card_bytes=card_bytes) for stage in config.stages]
    memory, kernels = worst_of(plans), [found.kernels for found in plans]
    stages = [
        _stage(stage, tokens_per_update, record, world_size)
        for stage, record in zip(config.stages, kernels, strict=True)
    ]
    tokens = tokens_per_update * steps
    flops, dense = (sum(stage[kind] for stage in stages) for kind in ("flops", "flops_dense_equivalent"))
    eight_bit, moved = (sum(stage[kind] for stage in stages) for kind in ("flops_eight_bit", "bytes_quantised"))
    rate = gpu.rates[train.products] if gpu else EIGHT_BIT_RATE
    seconds = None
    if speed and (rate or not eight_bit):
        seconds = (flops - eight_bit + eight_bit / max(rate, 1)) / (speed * world_size)
        seconds += moved / (gpu.bandwidth * 1e9 * world_size) if gpu else 0
    return {
        "parameters": count_parameters(config.model, config.linear),
        "tokens_per_micro_step": train.micro_batch_size * train.seq_len,
        "micro_steps_per_update": micro_steps,
        "tokens_per_update": tokens_per_update,
        "tokens": tokens,
        "tokens_at_most": config.data.packing == "document",
        "sources": planned(config, tokens),
        "steps": steps,
        "flops": flops,
        "flops_dense_equivalent": dense,
        "flops_eight_bit": eight_bit,
        "bytes_quantised": moved,
        "flops_per_token": flops / tokens,
        "flops_over_dense": flops / dense,
        "seconds": seconds,
        "modelled_tokens_per_second": tokens / seconds if seconds else None,
        "stages": stages,
        "kernels": kernels,
        "memory_bytes": memory.items | {"total": memory.total},
        "memory_worst_phase": memory.worst,
        "memory_worst_layers": memory.n_layers,
        "memory_phases": {phase: moment.items | {"total": moment.total} for phase, moment in memory.phases.items()},
        "host_memory_bytes": memory.host,
        "checkpoint_copy_bytes": planned_copies(config, world_size),
        "transfers": transfers(config, speed),
        "reserve": reserve(memory.total, fragmentation(config)),
        "fits": {f"{size}GiB": fit for size, fit in fitting(config, world_size).items()},
    }


def _stage(stage: Stage, tokens_per_update: int, kernels: dict[str, Any], world_size: int) -> dict[str, Any]:
    """Layers, steps, tokens and FLOPs of one growth stage; without growth, of the run."""
    steps = stage.end - stage.start
    train, eight_bit, moved = stage.config.train, 0, 0
    if train.products != "bf16":
        sizes = (train.micro_batch_size * train.seq_len, train.eight_bit_weight_gradients)
        eight_bit, moved = eight_bit_work(stage.config.model, stage.config.linear, *sizes)
    micro_steps = steps * train.global_batch_size // train.micro_batch_size
    return {
        "n_layers": stage.config.model.n_layers,
        "steps": steps,
        "tokens": steps * tokens_per_update,
        "flops_eight_bit": eight_bit * micro_steps,
        "bytes_quantised": moved * micro_steps,
        "flops": flops_per_update(stage.config, "executed", kernels, world_size) * steps,
        "flops_dense_equivalent": flops_per_update(stage.config, "dense_equivalent", kernels, world_size) * steps,
    }


def flops_per_update(
    config: Config, kind: Literal["executed", "dense_equivalent"], kernels: dict[str, Any], world_size: int
) -> float:
    """FLOPs of one optimizer step over all processes, forward and backward.

    `kernels` is the record of how the linears compute (pretrain.engine.kernel_choices). What a linear does once per
    step it does once in every process.
    """
    train = config.train
    micro_steps = train.global_batch_size // (train.micro_batch_size * world_size)
    sizes = (train.micro_batch_size, train.seq_len)
    return float(world_size * training_flops(config.model, config.linear, *sizes, recorded(kernels), micro_steps)[kind])


def describe_kernels(kernels: Sequence[dict[str, Any]], card_bytes: int) -> Iterator[str]:
    """How the linears are taken to compute in those FLOPs, one line per growth stage that differs; `train` decides."""
    device = f"a GPU of {card_bytes / 2**30:g} GiB" if card_bytes else "a GPU of unknown memory, see --gpu"
    found = {}
    for record in kernels:
        ways = dict.fromkeys(line.partition(": ")[2] for line in describe(record))
        if ways:
            found[f"  counted with    {'; '.join(ways)} (assumed, on {device}; a run counts what it chose)"] = True
    yield from found
