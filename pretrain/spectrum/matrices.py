"""The linears of a checkpoint, one in memory at a time, and what each is made of."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from model.build import shape_of_model
from model.linear.base import BaseLinear
from model.linear.low_rank import LowRank
from model.linear.sparse_low_rank import SparseLowRank
from model.linear.support.base import check_supports
from model.spectrum import product_singular_values, singular_values
from pretrain.checkpoint.read import Checkpoint

PARTS = ("W", "BA", "S")
"""The whole map, its low-rank product (scaled) and its sparse part."""


def shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return (out_features, in_features) of every linear by its full name."""
    return {name: (linear.out_features, linear.in_features) for name, linear in _empty(checkpoint).items()}


def linears(checkpoint: Checkpoint, names: Iterable[str], device: torch.device) -> Iterator[BaseLinear]:
    """Yield the linears `names` with their values, in fp32 on `device`; each is let go before the next is read."""
    empty = _empty(checkpoint)
    for name in names:
        yield _filled(checkpoint, name, empty[name], device)
        empty[name].to("meta")


def spectra(linear: BaseLinear) -> dict[str, Tensor]:
    """Return the singular values of the parts that `linear` has, on the CPU: q of W and S, of BA as many as its rank.

    q is the smaller side. W of a low_rank linear is its product.
    """
    whole = (linear.out_features, linear.in_features)
    if isinstance(linear, LowRank):
        product = product_singular_values(linear.B, linear.A, linear.scale)
        padded = torch.cat([product, product.new_zeros(min(whole) - len(product))])
        return {"W": padded.cpu(), "BA": product.cpu()}
    found = {"W": singular_values(linear.dense_weight())}
    if isinstance(linear, SparseLowRank):
        found["BA"] = product_singular_values(linear.B, linear.A, linear.scale)
        sparse = torch.zeros(whole, device=linear.values.device)
        found["S"] = singular_values(linear.support.add_to(sparse, linear.values.detach()))
    return {part: values.cpu() for part, values in found.items()}


def _empty(checkpoint: Checkpoint) -> dict[str, BaseLinear]:
    """Return the linears without memory (device meta) by name."""
    config = checkpoint.stage.config
    model = shape_of_model(config.model, config.linear, int8=config.optimizer.weights == "int8")
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseLinear)}


@torch.no_grad()
def _filled(checkpoint: Checkpoint, name: str, linear: BaseLinear, device: torch.device) -> BaseLinear:
    linear.to_empty(device=device)
    for own, tensor in linear.state_dict().items():
        tensor.copy_(checkpoint.read(f"model.{name}.{own}"))
    check_supports(linear)
    return linear
