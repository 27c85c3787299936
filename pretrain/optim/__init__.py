"""Optimizers by name. A matrix optimizer is a file and a line in `rules`, any other here."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field

from model.linear.int8 import Int8Linear
from model.transformer import Transformer
from pretrain.optim.adamw import AdamW, AdamW8bit
from pretrain.optim.config import MatrixConfig, OwnConfig
from pretrain.optim.exchange import Exchange
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.own_optimizer import OwnOptimizer
from pretrain.optim.rules import PRESETS
from pretrain.optim.targets import find_targets

OPTIMIZERS: dict[str, type[Any]] = {"adamw": AdamW, "adamw8bit": AdamW8bit, **PRESETS}
"""Each has its configuration as `Config`."""

if TYPE_CHECKING:
    from typing import Any as OptimizerConfig
else:
    OptimizerConfig = Annotated[
        reduce(or_, (optimizer.Config for optimizer in OPTIMIZERS.values())), Field(discriminator="name")
    ]


def build_optimizer(
    config: OptimizerConfig,
    model: Transformer,
    *,
    seed: int = 0,
    grad_clip: float = 0.0,
    exchange: Exchange | None = None,
) -> torch.optim.Optimizer:
    """The optimizer that `config.name` names, over the parameters of `model`.

    `seed`, `grad_clip` and `exchange` are for Sparlow's own, which clip and reduce gradients themselves.
    """
    named: list[tuple[str, Any]] = list(model.named_parameters())
    if isinstance(config, MatrixConfig):
        targets = find_targets(model, config)
        int8 = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, Int8Linear)}
        return MatrixOptimizer(named, targets, config, seed, grad_clip, model.compute_dtype, exchange, int8)
    if isinstance(config, OwnConfig):
        return OwnOptimizer(named, config, seed, grad_clip, exchange)
    return AdamW.build(config, model)
