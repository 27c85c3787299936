"""A model with initial weights, and the check that ranks agree on what was drawn."""

import zlib

import torch
from torch import nn

from kernels.eight_bit_linear import EightBit
from model.config import ModelConfig
from model.errors import UserError
from model.linear import LinearConfig
from model.linear.base import BaseLinear
from model.linear.int8 import to_int8
from model.transformer import Transformer


def build_model(
    config: ModelConfig,
    linear: LinearConfig,
    *,
    seed: int,
    device: torch.device | str,
    param_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    checkpoint_every: int = 0,
    offload: bool = False,
    int8: bool = False,
    eight_bit: EightBit | None = None,
) -> Transformer:
    """A transformer on `device` whose every parameter and buffer comes from (seed, its name).

    With `int8` its dense linears keep 8-bit codes; `param_dtype` is that of the rest. `eight_bit` says how linears
    multiply in training. It is made without memory first, so the device never holds more than the finished model.
    """
    model = shape_of_model(config, linear, compute_dtype, checkpoint_every, int8, offload, eight_bit)
    model = model.to(param_dtype).to_empty(device=device)
    initialise(model, seed)
    return model


def shape_of_model(
    config: ModelConfig,
    linear: LinearConfig,
    compute_dtype: torch.dtype = torch.float32,
    checkpoint_every: int = 0,
    int8: bool = False,
    offload: bool = False,
    eight_bit: EightBit | None = None,
) -> Transformer:
    """The transformer without memory (device meta); UserError when the linears do not fit its shape, or `int8`."""
    if int8 and linear.name != "dense":
        raise UserError(
            f'linear.name = "{linear.name}" has no dense weights for optimizer.weights = "int8"; set linear.name = '
            '"dense", or other weights'
        )
    with torch.device("meta"):
        model = Transformer(config, linear, compute_dtype, checkpoint_every, offload)
        if int8:
            to_int8(model)
        for module in model.modules():
            if isinstance(module, BaseLinear):
                module.eight_bit = eight_bit
        return model


def initialise(model: nn.Module, seed: int) -> None:
    """Reset every module that can reset itself and what it holds."""
    for module in model.children():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters(seed)  # type: ignore[operator]
        else:
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            assert not own, f"{type(module).__name__} has tensors and no reset_parameters"
            initialise(module, seed)


def support_checksum(model: nn.Module) -> int:
    """CRC-32 of all supports and 8-bit codes with their names; ranks whose checksums differ hold different models."""
    checksum = 0
    for name, buffer in model.named_buffers():
        if not buffer.is_floating_point():
            checksum = zlib.crc32(name.encode(), checksum)
            checksum = zlib.crc32(buffer.cpu().numpy().tobytes(), checksum)
    return checksum
