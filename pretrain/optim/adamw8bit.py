"""AdamW with moments of 8 bits (arXiv 2110.02861), also inside of the backward pass; for linears with factors."""

from typing import Literal

from pydantic import Field

from pretrain.optim.config import OwnConfig


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
