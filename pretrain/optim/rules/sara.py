"""SARA (arXiv 2502.05790): GaLore whose bases are drawn at random from the singular vectors."""

from typing import Literal

from pretrain.optim.matrix_config import MatrixConfig


class Sara(MatrixConfig):
    """SARA on GaLore (arXiv 2502.05790), which leaves no direction out for good; the defaults are GaLore's."""

    rule = "galore"
    name: Literal["sara"] = "sara"
    projector: str = "sampled_svd"
