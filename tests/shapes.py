"""The shapes of the shipped models, for what is compiled or counted without memory."""

import functools
from pathlib import Path

import torch

CONFIGS = Path(__file__).parents[1] / "configs"


def meta(*size: int, dtype: str = "bfloat16") -> torch.Tensor:
    return torch.empty(size, dtype=getattr(torch, dtype), device="meta")


@functools.cache
def projections() -> list[tuple[int, int, int, float]]:
    """(out, in, rank, density) of every projection of every shipped sparse-plus-low-rank model, without repetition."""
    from model.counts import projection_shapes
    from pretrain.config import load_config

    found = {}
    for path in sorted(CONFIGS.glob("*.toml")):
        config = load_config(path)
        if config.linear.name == "sparse_low_rank":
            for n_in, n_out in projection_shapes(config.model).values():
                found[n_out, n_in, config.linear.rank, config.linear.density] = None
    return list(found)
