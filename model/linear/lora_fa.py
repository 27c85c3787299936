"""LoRA whose A stays as it was drawn (LoRA-FA, arXiv 2308.03303)."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from model.linear.initial import among
from model.linear.lora import Lora
from model.linear.ranks import RankTable
from model.schema import Frozen


class LoraFA(Lora):
    """y = x W0^T + scale (x A^T) B^T with W0 (out, in) and A (rank, in) frozen: B (out, rank) alone trains.

    Of the input nothing is kept for the backward pass but x A^T, and A has neither a gradient nor moments. What can
    change of W lies in the rows that A spans, as it was drawn.
    """

    class Config(Frozen):
        """A frozen dense matrix plus alpha / rank B A, of which B alone trains (LoRA-FA)."""

        name: Literal["lora_fa"] = "lora_fa"
        rank: int = Field(128, ge=1)
        """Inner width of the factors; at most the smaller side of every projection."""
        ranks: RankTable = ()
        """Ranks of linears by patterns of their names, in place of `rank`; the last pattern that matches decides."""
        alpha: float = Field(32.0, gt=0)
        """Numerator of the scale alpha / rank of the product."""
        init: Annotated[str, among("kaiming", "spectral", "orthogonal")] = "kaiming"
        """How the factors start, as for lora."""

    A: torch.Tensor  # type: ignore[assignment]

    def __init__(self, config: Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(config, in_features, out_features, name, init_std)  # type: ignore[arg-type]
        drawn = self.A.detach()
        del self.A
        self.register_buffer("A", drawn)

    @staticmethod
    def count_parameters(config: Config, in_features: int, out_features: int) -> int:  # type: ignore[override]
        return config.rank * out_features

    @staticmethod
    def count_frozen(config: Config, in_features: int, out_features: int) -> int:  # type: ignore[override]
        return (out_features + config.rank) * in_features
