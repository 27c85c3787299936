"""GoLore (arXiv 2410.11289): GaLore whose bases are random late in training, when gradients are mostly noise."""

from typing import Literal

from pydantic import Field

from pretrain.optim.matrix_config import MatrixConfig


class GoLore(MatrixConfig):
    """GoLore (arXiv 2410.11289); the defaults are GaLore's at 60M, random for the last fifth of the steps."""

    rule = "galore"
    quantised = {"moments": "8bit"}
    name: Literal["golore"] = "golore"
    random_from_step: int = Field(8000, ge=0)
    """From this step on bases are uniformly random; until then `projector` finds them."""
