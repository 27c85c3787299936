"""`sparlow bench train`: the training step against transformers' LLaMA with fused AdamW, the same shape and batch.

The peer is run as its users run it, under bf16 autocast, and again with Sparlow's allocator setting
(pretrain/machine/memory.py), which speeds up any training on a CPU: the first ratio is what a user gains by changing
over, the second what is left when both have the setting. Where Sparlow computes in fp32, because
the processor has no bf16 instructions or by configuration, the peer also runs in fp32. All have Sparlow's setting of
how threads wait for each other (pretrain/machine/threads.py), without which a busy machine slows each of them down.
"""

from typing import Any

import torch

from pretrain.bench.slices import Contestant, take_turns
from pretrain.bench.timing import ratio_row
from pretrain.config.schema import Config
from pretrain.loop.resume import resolve_dtype

WORKER = "pretrain.bench.train_worker"


def bench_train(config_path: str, overrides: list[str], config: Config, turns: int, steps: int) -> list[dict[str, Any]]:
    """One row per pair (ours, peer); `ratio` is ours / peer in time, so below 1 is faster."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(config, device, None).train.dtype
    settings = {"stock": "", "tuned": " + allocator setting"} if device.type == "cpu" else {"stock": ""}
    own: list[Contestant] = []
    peers: list[Contestant] = []
    try:
        own.append(Contestant("sparlow", WORKER, "sparlow", config_path, *overrides))
        if config.linear.name != "dense":
            other = [text for text in overrides if not text.startswith("--linear.")]
            own.append(Contestant("sparlow dense", WORKER, "sparlow", config_path, *other, "--linear.name=dense"))
        for precision in ["bf16"] if dtype == "bf16" else ["bf16", "fp32"]:
            for setting, suffix in settings.items():
                kind = f"peer-{precision}-{setting}"
                peers.append(Contestant(f"transformers {precision}{suffix}", WORKER, kind, config_path, *overrides))
        seconds = take_turns([*own, *peers], turns, steps)
    finally:
        for contestant in [*own, *peers]:
            contestant.close()
    model, train = config.model, config.train
    network = f"d{model.dim} L{model.n_layers} ffn{model.ffn_dim} V{model.vocab_size}"
    shape = f"{network} B{train.micro_batch_size} T{train.seq_len}"
    return [
        ratio_row(ours.name, shape, dtype, device, seconds[ours.name], peer.name, seconds[peer.name])
        for ours in own
        for peer in peers
    ]
