"""Optimizers by name. An optimizer is one file and one line here."""

import torch
from torch import nn

from pretrain.optim.adamw import AdamW

OPTIMIZERS = {"adamw": AdamW}

OptimizerConfig = AdamW.Config


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `config.name` names, over the trainable parameters of `model`."""
    return OPTIMIZERS[config.name].build(config, model)
