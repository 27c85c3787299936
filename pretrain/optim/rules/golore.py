"""GoLore (arXiv 2410.11289): GaLore whose bases are random late in training, when gradients are mostly noise."""

from typing import Literal

from pydantic import Field

from pretrain.optim.matrix_config import MatrixConfig


class GoLore(MatrixConfig):
    """GoLore (arXiv 2410.11289); the defaults are the released ones."""

    rule = "galore"
    name: Literal["golore"] = "golore"
    lr: float = Field(1e-3, gt=0)
    scale: float = Field(1.0, gt=0)
    random_fraction: float = Field(0.2, ge=0, le=1)
    """Share of schedule.total_steps, the last of the run, in which new bases are uniformly random, also where it grows
    in stages; until then `projector` finds them."""
