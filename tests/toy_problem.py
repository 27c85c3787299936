"""A least-squares problem in one matrix, on which every optimizer must get somewhere."""

from optim_drive import gradients, optimizer_of
from torch import nn

from pretrain.optim.config import MatrixConfig


def remaining_error(config: MatrixConfig, steps: int = 300, shape: tuple[int, int] = (16, 24)) -> float:
    """|W - target|^2 after `steps` with a learning rate that falls linearly to 0, over what it was."""
    start, target = gradients(shape, 2, seed=7)
    weight = nn.Parameter(start.clone())
    optimizer = optimizer_of(config, weight)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / steps)
        ((weight - target).square().sum() / 2).backward()
        optimizer.step()
    return ((weight.detach() - target).square().sum() / (start - target).square().sum()).item()
