"""The tensors of an imported checkpoint, made one weight after the other from those of a Hugging Face folder."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from model.errors import UserError
from model.hf.load import Folder
from model.hf.names import DenseTensor

STORED = {torch.bfloat16: torch.bfloat16}
"""Types that a checkpoint keeps as they are; all others become fp32, which holds fp16 exactly."""

Convert = Callable[[DenseTensor, Tensor], Iterator[tuple[str, Tensor]] | None]
"""What a weight becomes, by names of the model here; None for one that stays dense."""


def checkpoint_tensors(folder: Folder, convert: Convert) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the checkpoint; in memory are one weight and what it becomes.

    UserError for a weight that holds NaN or infinity: no training goes on from it.
    """
    for tensor in folder.tensors():
        weight = read_finite(folder, tensor)
        parts = convert(tensor, weight)
        if parts is None:
            yield f"model.{tensor.ours}", weight.to(STORED.get(weight.dtype, torch.float32))
        else:
            for name, part in parts:
                yield f"model.{name}", part
        del weight, parts


def read_finite(folder: Folder, tensor: DenseTensor) -> Tensor:
    """A weight in its stored type; UserError where it has a number that is not finite: one pass, without a copy."""
    weight = folder.read(tensor)
    low, high = torch.aminmax(weight)  # NaN where there is one
    if not (low.isfinite() and high.isfinite()):
        raise UserError(
            f"{folder.path}: tensor {tensor.theirs} holds NaN or infinity, with which no training can go on; download "
            "the folder again, or take another one"
        )
    return weight
