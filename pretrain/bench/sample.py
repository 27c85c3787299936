"""`sparlow bench sample`: tokens continued with kept keys and values against a forward pass of the whole text for each.

Both take the likeliest token, in one process and in turns, each time from the same beginning.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.transformer import Transformer
from pretrain.bench.timing import DTYPES, ratio_row
from pretrain.config.schema import Config
from pretrain.engine.kernel_choices import weights_kept
from pretrain.loop.build import build
from pretrain.machine.distributed import World
from pretrain.using.generate import continue_ids

BEGINNING = [0] * 8
"""Token ids to continue."""


def bench_sample(
    config: Config, device: torch.device, dtypes: list[str], turns: int, tokens: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row per precision: milliseconds per token of the model of `config` with its initial weights.

    `ratio` is ours / the whole text's in time, so below 1 is faster.
    """
    shape = config.model
    name = f"d{shape.dim} L{shape.n_layers} ffn{shape.ffn_dim} V{shape.vocab_size}, {tokens} tokens"
    rows = []
    for dtype in dtypes:
        say(f"{config.linear.name} in {dtype}")
        model = build(config, device, DTYPES[dtype]).eval()
        seconds: list[list[float]] = [[], []]
        for turn in range(turns + 1):  # the first, of a few tokens, warms up
            n = tokens if turn else 4
            for contestant, taken in zip((_continue, continue_by_whole_texts), seconds, strict=True):
                started = time.perf_counter()
                contestant(model, BEGINNING, n, device)
                if turn:
                    taken.append((time.perf_counter() - started) / n)
        rows.append(ratio_row(config.linear.name, name, dtype, device, seconds[0], "whole text per token", seconds[1]))
    return rows


def _continue(model: Transformer, ids: list[int], tokens: int, device: torch.device) -> list[int]:
    return continue_ids(model, ids, tokens, None, _likeliest, World(0, 1, device))


@torch.no_grad()
def continue_by_whole_texts(model: Transformer, ids: list[int], tokens: int, device: torch.device) -> list[int]:
    """The likeliest `tokens` ids after `ids`, with a forward pass of all that the model can see for each."""
    text = list(ids)
    with weights_kept(model):
        for _ in range(tokens):
            window = torch.tensor([text[-model.config.max_seq_len :]], device=device)
            text.append(_likeliest(model(window)[0, -1]))
    return text[len(ids) :]


def _likeliest(logits: Tensor) -> int:
    return int(logits.argmax())
