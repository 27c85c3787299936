"""Numbers of things and sizes of models, for messages."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.config.schema import Config


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def tokens_of_a_time(config: "Config") -> str:
    """What growth.at counts: the places in rows, of which padding takes some where a row holds one document."""
    return "tokens with padding" if config.data.packing == "document" else "tokens"


def model_size(stage: "Config", run: "Config") -> str:
    """The layers of a stage's model, and its rank and density where those grow in `run`: `6 layers of rank 4`."""
    growing = [key for key in ("rank", "density") if getattr(run.growth, key)]
    values = " and ".join(f"{key} {getattr(stage.linear, key):g}" for key in growing)
    return counted(stage.model.n_layers, "layer") + (f" of {values}" if values else "")
