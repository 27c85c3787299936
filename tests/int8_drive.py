"""Runs a matrix optimizer on one matrix of 8-bit codes with gradients from outside."""

import torch
from torch import Tensor, nn

from model.linear.dense import Dense
from model.linear.int8 import Int8Linear
from pretrain.optim.config import MatrixConfig
from pretrain.optim.matrix import Matrix, projected_side
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.rules import PRESETS


def int8_linear(weight: Tensor, name: str = "w") -> Int8Linear:
    """A linear with the codes of `weight` (out, in)."""
    linear = Int8Linear(Dense.Config(), weight.shape[1], weight.shape[0], name, 0.02)
    linear.store(weight)
    return linear


def optimizer_of_codes(config: MatrixConfig, linear: Int8Linear, grad_clip: float = 0.0) -> MatrixOptimizer:
    """With a norm weight beside the codes, as an optimizer has at least one parameter."""
    shape = (linear.out_features, linear.in_features)
    matrix = Matrix("w", shape, projected_side(shape, config.proj_type, PRESETS[config.name].square_side), config.rank)
    norm = nn.Parameter(torch.ones(3))
    named, linears = [("norm.weight", norm)], {"w": linear}
    return MatrixOptimizer(named, {"w": matrix}, config, 0, grad_clip, int8_linears=linears)


def codes_step(optimizer: MatrixOptimizer, linear: Int8Linear, gradients: list[Tensor]) -> None:
    """One update from the sum of `gradients`, one micro-step each."""
    for gradient in gradients:
        linear(torch.eye(linear.in_features)).mul(gradient.t()).sum().backward()
        (optimizer.elements[0].parameter * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
    optimizer.step()


def drive_codes(config: MatrixConfig, start: Tensor, grads: list[Tensor]) -> list[Tensor]:
    """The dequantised weight after each step."""
    linear = int8_linear(start)
    optimizer = optimizer_of_codes(config, linear)
    seen = []
    for gradient in grads:
        codes_step(optimizer, linear, [gradient])
        seen.append(linear.dense_weight())
    return seen
