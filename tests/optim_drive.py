"""Runs a matrix optimizer on one matrix with gradients from outside."""

import torch
from torch import nn

from pretrain.optim.config import MatrixConfig
from pretrain.optim.matrix import Matrix, projected_side
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.rules import PRESETS

SHAPES = [(24, 16), (16, 24), (16, 16), (1, 12), (12, 1)]


def gradients(shape: tuple[int, int], steps: int, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random) for _ in range(steps)]


def optimizer_of(config: MatrixConfig, weight: nn.Parameter, grad_clip: float = 0.0) -> MatrixOptimizer:
    rows, cols = weight.shape
    side = projected_side((rows, cols), config.proj_type, PRESETS[config.name].square_side)
    matrix = Matrix("w", (rows, cols), side, config.rank)
    return MatrixOptimizer([("w", weight)], {"w": matrix}, config, seed=0, grad_clip=grad_clip)


def drive(config: MatrixConfig, start: torch.Tensor, grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """The weight after each step."""
    weight = nn.Parameter(start.clone())
    optimizer = optimizer_of(config, weight)
    seen = []
    for gradient in grads:
        (weight * gradient.to(weight.dtype)).sum().backward()  # its gradient is `gradient`, and hooks run
        optimizer.step()
        seen.append(weight.detach().clone())
    return seen
