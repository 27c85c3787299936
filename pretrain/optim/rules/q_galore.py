"""Q-GaLore (arXiv 2407.08296): GaLore with weights, bases and moments in codes, and lazier refreshes."""

from typing import Literal

from pydantic import Field

from pretrain.optim.matrix_config import MatrixConfig


class QGaLore(MatrixConfig):
    """Q-GaLore (arXiv 2407.08296); the defaults are the paper's for 60M parameters."""

    rule = "galore"
    quantised = {"moments": "8bit", "weights": "int8"}
    name: Literal["q_galore"] = "q_galore"
    lr: float = Field(0.015, gt=0)
    moments: Literal["fp32", "bf16", "8bit", "adafactor"] = "8bit"
    weights: Literal["fp32_master", "bf16", "bf16_stochastic", "int8"] = "int8"
    projection: Literal["fp32", "bf16", "int8", "int4"] = "int4"
    refresh: Literal["fixed", "adaptive"] = "adaptive"
