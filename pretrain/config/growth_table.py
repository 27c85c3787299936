"""The table [growth]: a smaller model first, and how and when it grows."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator

from model.growth import GROWTH
from model.growth.plan import GrowthOptions
from model.growth.widening import Widening, Width
from model.growth.width import SHARE_SPREAD
from model.schema import Frozen
from pretrain.config.literals import as_toml


class GrowthConfig(Frozen):
    """Train a smaller model first and grow it into [model] and [linear] on the way (G_stack, arXiv 2405.15319)."""

    enabled: bool = False
    """Switches the table on."""
    factor: int | tuple[int, ...] = 4
    """By how much a growth multiplies the layers; a list for several growths."""
    layers: tuple[int, ...] = ()
    """Layers before each growth, in place of factor, for orders that do not multiply them (solar, gradual, midas)."""
    dim: int = Field(0, ge=0)
    """model.dim before the last growth; 0 means the same as after it."""
    ffn_dim: int = Field(0, ge=0)
    """model.ffn_dim before the last growth; 0 means the same as after it."""
    n_heads: int = Field(0, ge=0)
    """model.n_heads before the last growth; 0 means the same as after it. A head stays as wide."""
    n_kv_heads: int = Field(0, ge=0)
    """model.n_kv_heads before the last growth; 0 means as [model] says: the same number, or as many as n_heads."""
    width: Width = "copy"
    """Growth in width: by copies of all, a whole number of each; or by random heads and units with outputs of zero."""
    share_spread: float = Field(SHARE_SPREAD, ge=0, le=100)
    """For width = "copy": how unevenly copies share a weight, in parts of an even share; 0.0: they stay equal."""
    rank: int = Field(0, ge=0)
    """linear.rank before the last growth; 0 means the same as after it."""
    density: float = Field(0.0, ge=0, lt=1)
    """linear.density before the last growth; 0.0 means the same as after it."""
    at: Literal["formula"] | int | float | tuple[int | float, ...] = "formula"
    """When: tokens with padding (an integer), a part of the run (a decimal) or "formula"; a list for several times."""
    max_fraction: float = Field(0.1, gt=0, le=1)
    """Part of the run that the formula may ask for at most; it was fitted on runs far longer than most."""
    parameters: Literal["dense_equivalent", "trainable"] = "dense_equivalent"
    """Parameters of the grown model as the formula counts them; it was fitted on dense models."""
    operator: str = "stack"
    """stack (abcabc), interleave (aabbcc), zero (new layers start silent), source_layers, solar, gradual or midas."""
    order: str = ""
    """For operator = "zero": stack, interleave, solar, gradual or midas; empty means interleave."""
    source_layers: tuple[int, ...] = ()
    """For operator = "source_layers": the small model's layer for each layer of the grown one, counted from 0."""
    function_preserving: bool = False
    """Start all copies of a layer but the first with outputs of zero, so that growth does not change the loss."""
    optimizer: Literal["reset", "copy", "copy_reset_step"] = "reset"
    """State after growth: anew, copied with the layers, or copied with its step count at 0."""
    schedule: Literal["reset", "continue"] = "reset"
    """reset: warm up again, then the whole curve over the steps that are left. continue: as if nothing had happened."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Warm-up after growth with schedule = "reset", as a part of the steps that are left."""
    lr: float = Field(0.0, ge=0)
    """Peak learning rate before the last growth; 0.0 means optimizer.lr."""

    @property
    def widening(self) -> Widening:
        return Widening(self.width, self.share_spread)

    @property
    def options(self) -> GrowthOptions:
        return GrowthOptions(self.order, self.source_layers, self.function_preserving)

    @property
    def factors(self) -> tuple[int, ...]:
        """`factor` of each growth."""
        return self.factor if isinstance(self.factor, tuple) else (self.factor,)

    @property
    def total_factor(self) -> int:
        return math.prod(self.factors)

    @property
    def sizes(self) -> str:
        """The key that says how large each growth is, and its value, for messages."""
        return f"growth.layers = {as_toml(self.layers)}" if self.layers else f"growth.factor = {as_toml(self.factor)}"

    @property
    def times(self) -> tuple[str | int | float, ...]:
        """`at` of each growth."""
        return self.at if isinstance(self.at, tuple) else (self.at,)

    @field_validator("factor", mode="before")
    @classmethod
    def _whole_factors(cls, value: Any) -> Any:
        factors = value if isinstance(value, tuple) else (value,)
        if not factors or not all(type(factor) is int and factor >= 2 for factor in factors):
            wrong = f"{as_toml(value):.100} is no factor of growth"
            raise ValueError(f"{wrong}; give an integer of at least 2, or a list of them")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_before(cls, value: Any) -> Any:
        if not (isinstance(value, tuple) and all(type(layers) is int and layers >= 1 for layers in value)):
            raise ValueError(
                f"{as_toml(value):.100} does not say the layers before each growth; give a list of integers of at "
                "least 1, as in [6] for one growth"
            )
        return value

    @field_validator("at", mode="before")
    @classmethod
    def _times(cls, value: Any) -> Any:
        times = value if isinstance(value, tuple) else (value,)
        for time in times:
            tokens, part = type(time) is int and time >= 1, type(time) is float and 0 < time < 1
            if not (tokens or part or (time == "formula" and value == "formula")):
                raise ValueError(
                    f"{as_toml(value):.100} is no time; give tokens (an integer), a part of the run between 0.0 and "
                    '1.0, or "formula"; a list of the first two for several growths'
                )
        if not times:
            raise ValueError("[] names no time; give one for each growth")
        return value

    @field_validator("operator")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in GROWTH:
            raise ValueError(f"{value!r:.100} is none of {', '.join(GROWTH)}")
        return value
