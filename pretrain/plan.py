"""The figures of a run before it runs: parameters, tokens and FLOPs, by arithmetic alone."""

from typing import Any

from model.counts import count_parameters, training_flops
from pretrain.config.schema import Config
from pretrain.distributed import require_divisible


def plan(config: Config, world_size: int) -> dict[str, Any]:
    """All figures of `sparlow plan --json` for `world_size` processes."""
    train, steps = config.train, config.schedule.total_steps
    micro_batches = require_divisible(train.global_batch_size, train.micro_batch_size, world_size) * world_size
    flops = training_flops(config.model, config.linear, train.micro_batch_size, train.seq_len)
    tokens_per_update = train.global_batch_size * train.seq_len
    return {
        "parameters": count_parameters(config.model, config.linear),
        "tokens_per_micro_step": train.micro_batch_size * train.seq_len,
        "micro_steps_per_update": micro_batches // world_size,
        "tokens_per_update": tokens_per_update,
        "tokens": tokens_per_update * steps,
        "steps": steps,
        "flops": float(flops["executed"]) * micro_batches * steps,
        "flops_dense_equivalent": float(flops["dense_equivalent"]) * micro_batches * steps,
    }
