"""The dense weights of a model, one at a time: what a Hugging Face folder is written from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.linear.base import BaseLinear
from model.transformer import Transformer

WeightOf = Callable[[str], Tensor]
"""A dense weight by its name in a Transformer with dense linears, in fp32 and made when it is asked for."""


@torch.no_grad()
def merged_weight(module: nn.Module) -> Tensor:
    """The fp32 weight of a linear, merged into its dense matrix, or of an embedding, norm or head."""
    weight = module.dense_weight() if isinstance(module, BaseLinear) else module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().float()


def merged_weights(model: Transformer) -> WeightOf:
    """Every dense weight of a model that is in memory."""
    return lambda name: merged_weight(model.get_submodule(name.removesuffix(".weight")))
