"""AdamW on every parameter, element by element (arXiv 1711.05101), under ZeRO, or with 8-bit moments."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from model.schema import Frozen
from pretrain.optim.config import OwnConfig

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW:
    """torch.optim.AdamW: the class DeepSpeed knows, so ZeRO may shard it at every stage."""

    class Config(Frozen):
        """AdamW; the defaults are those of the SLTrain paper's runs."""

        name: Literal["adamw"] = "adamw"
        lr: float = Field(3e-3, gt=0)
        """Peak learning rate."""
        betas: tuple[Beta, Beta] = (0.9, 0.999)
        """Decay rates of the two moments, each in [0, 1)."""
        eps: float = Field(1e-8, gt=0)
        """Added to the root of the second moment."""
        weight_decay: float = Field(0.0, ge=0)
        """Decoupled weight decay per step, times the learning rate; norm weights are never decayed."""
        weights: Literal["fp32_master", "bf16"] = "fp32_master"
        """fp32_master: weights are stored and updated in fp32. bf16: in bf16, rounded to nearest (half the memory)."""

    @staticmethod
    def build(config: "AdamW.Config", model: nn.Module) -> torch.optim.AdamW:
        """Two groups: weights that decay, and norm weights that do not."""
        decay: list[nn.Parameter] = []
        keep: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (keep if name.endswith("norm.weight") else decay).append(parameter)
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": keep, "weight_decay": 0.0}]
        if config.weight_decay == 0:
            groups = [{"params": decay + keep, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


class AdamW8bit:
    """AdamW on every parameter, with choices of moments, weights and time."""

    class Config(OwnConfig):
        """AdamW with 8-bit moments; the defaults are those of the SLTrain paper's runs."""

        name: Literal["adamw8bit"] = "adamw8bit"
        lr: float = Field(3e-3, gt=0)
        eps: float = Field(1e-8, gt=0)
        eps_mode: Literal["galore", "torch"] = "torch"
        moments: Literal["fp32", "8bit"] = "8bit"
        """How moments are kept. 8bit: in codes that blocks of 256 share a scale for."""
        weights: Literal["fp32_master", "bf16", "bf16_stochastic"] = "fp32_master"
        """fp32_master: weights in fp32. bf16: in bf16, rounded to nearest. bf16_stochastic: right on average."""
