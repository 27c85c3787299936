"""Which tensors a checkpoint must hold: their names, shapes and types, known before one of them is read."""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch

from model.build import shape_of_model
from model.errors import UserError
from pretrain.config.schema import Config

FLOATS = ("F32", "BF16")
"""Types of floating-point tensors, by their names in safetensors: a model may be kept in either."""

INTEGERS = {torch.uint8: "U8", torch.int8: "I8", torch.uint16: "U16", torch.int32: "I32", torch.int64: "I64"}

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What element-wise AdamW keeps of every parameter."""

LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")

MOST_LAYERS = 1024
"""A configuration may have so many layers beside tensors of fewer, since a model may still grow."""


class Stored(NamedTuple):
    """A tensor as the header of its file describes it."""

    shape: tuple[int, ...]
    dtype: str
    """By its name in safetensors."""


def most_layers(names: Collection[str]) -> int:
    """How many layers the configuration beside tensors of these names may ask for."""
    return max(MOST_LAYERS, 1 + max((int(match[1]) for match in map(LAYER.match, names) if match), default=0))


def require_tensors(stored: Mapping[str, Stored], config: Config) -> None:
    """UserError unless `stored` are the tensors of the model of `config`, one stage's, with or without its optimizer's.

    Of an optimizer of Sparlow's own, what it keeps is compared where it is at hand (pretrain/engine/own.py).
    """
    model = shape_of_model(config.model, config.linear, int8=config.optimizer.weights == "int8")
    wanted = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    _require_names({name for name in stored if not name.startswith("optimizer.")}, wanted.keys())
    for name, tensor in wanted.items():
        _require(name, stored[name], tuple(tensor.shape), tensor.dtype)
    optimizer = {name for name in stored if name.startswith("optimizer.")}
    if optimizer and config.optimizer.name == "adamw":
        parameters = {f"optimizer.{name}.{key}": p for name, p in model.named_parameters() for key in MOMENTS}
        _require_names(optimizer, parameters.keys())
        for name, parameter in parameters.items():
            _require(name, stored[name], tuple(parameter.shape), parameter.dtype)


def require_names(stored: Collection[str], wanted: Collection[str], with_optimizer: bool) -> None:
    """UserError unless `stored` are the tensors `wanted`, those of an optimizer apart unless `with_optimizer`."""
    prefix = "" if with_optimizer else "model."
    _require_names(*({name for name in names if name.startswith(prefix)} for names in (stored, wanted)))


def _require_names(stored: Collection[str], wanted: Collection[str]) -> None:
    """Name one that is there and should not be, or the other way round."""
    for names, what in ((set(wanted) - set(stored), "is missing"), (set(stored) - set(wanted), "is not known")):
        if names:
            raise UserError(f"tensor {min(names)[:200]} {what}; the checkpoint is of another model or version")


def _require(name: str, stored: Stored, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    types = FLOATS if dtype.is_floating_point else (INTEGERS.get(dtype),)
    if stored.shape != shape or stored.dtype not in types:
        raise UserError(
            f"tensor {name} is {stored.dtype} {stored.shape}, expected {' or '.join(map(str, types))} {shape}; the "
            "checkpoint is of another model or version"
        )
