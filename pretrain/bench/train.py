"""`sparlow bench train`: the training step against transformers' LLaMA with fused AdamW, the same shape and batch.

The peer is run as its users run it, under bf16 autocast, and again with Sparlow's allocator setting
(pretrain/memory.py), which speeds up any training on a CPU: the first ratio is what a user gains by changing over, the
second what is left when both have the setting. Where the processor has no bf16 instructions the peer also runs in fp32.
"""

import statistics
from typing import Any

import torch

from pretrain.bench.slices import Contestant, median_ratio, take_turns
from pretrain.config.schema import Config
from pretrain.hardware import device_name, has_bf16

WORKER = "pretrain.bench.train_worker"


def bench_train(config_path: str, overrides: list[str], config: Config, turns: int, steps: int) -> list[dict[str, Any]]:
    """One row per pair (ours, peer); `ratio` is ours / peer in time, so below 1 is faster."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precisions = ["bf16"] if has_bf16(device) else ["bf16", "fp32"]
    own = [Contestant("sparlow", WORKER, "sparlow", config_path, *overrides)]
    if config.linear.name != "dense":
        own.append(Contestant("sparlow dense", WORKER, "sparlow", config_path, *overrides, "--linear.name=dense"))
    peers = []
    for precision in precisions:
        for setting in ["stock", *(["tuned"] if device.type == "cpu" else [])]:
            name = f"transformers {precision}" + (" + allocator setting" if setting == "tuned" else "")
            peers.append(Contestant(name, WORKER, f"peer-{precision}-{setting}", config_path, *overrides))
    try:
        seconds = take_turns([*own, *peers], turns, steps)
    finally:
        for contestant in [*own, *peers]:
            contestant.close()
    model, train = config.model, config.train
    network = f"d{model.dim} L{model.n_layers} ffn{model.ffn_dim} V{model.vocab_size}"
    shape = f"{network} B{train.micro_batch_size} T{train.seq_len}"
    return [
        {
            "name": ours.name,
            "shape": shape,
            "dtype": "bf16" if has_bf16(device) else "fp32",
            "device": device_name(device),
            "ours_ms": 1000 * statistics.median(seconds[ours.name]),
            "reference": peer.name,
            "reference_ms": 1000 * statistics.median(seconds[peer.name]),
            "ratio": median_ratio(seconds[ours.name], seconds[peer.name]),
        }
        for ours in own
        for peer in peers
    ]
