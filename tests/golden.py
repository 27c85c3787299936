"""Weights that released optimizers reach on inputs in closed form."""

import json
from pathlib import Path

import torch

VECTORS = Path(__file__).parent / "pretrain" / "optim" / "vectors.json"


def golden(name: str) -> dict:
    """What the released code reached: "W" and, where it learns its basis, "PPt", as tensors."""
    vectors = json.loads(VECTORS.read_text())[name]
    return {key: torch.tensor(value) for key, value in vectors.items() if key != "params"}


def inputs(shape: tuple[int, int], steps: int = 4) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The first weight and the gradients that gave `golden`."""
    i, j = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in shape), indexing="ij")
    start = 0.5 * torch.sin(0.9 * i - 0.4 * j + 0.2)
    at = range(1, steps + 1)
    return start, [torch.sin(0.7 * i * i + 1.3 * j + 0.31 * t) + 0.3 * torch.cos(0.5 * i * j + t) for t in at]
