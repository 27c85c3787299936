"""Which shape of a model may grow into which other one."""

from model.config import ModelConfig
from model.errors import UserError
from model.growth.plan import require_no_fewer

WIDTHS = ("dim", "ffn_dim", "n_heads", "n_kv_heads")
"""Keys of [model] that may grow, by whole factors."""

FREE = {"n_layers", "max_seq_len", "init_std", "head_dim", *WIDTHS}
"""Keys that may differ: those that grow, with the width of a head compared by itself, and those that no tensor and no
logit depends on."""


def width_of(model: ModelConfig, key: str) -> int:
    """The value of one of WIDTHS; of key and value heads their number, where the configuration has 0."""
    return model.kv_heads if key == "n_kv_heads" else int(getattr(model, key))


def same_widths(small: ModelConfig, large: ModelConfig) -> bool:
    return all(width_of(small, key) == width_of(large, key) for key in WIDTHS)


def require_growable(small: ModelConfig, large: ModelConfig) -> None:
    """UserError unless the models differ in depth and by whole factors in width, and in nothing else that counts."""
    for key, value in large:
        if key not in FREE and value != getattr(small, key):
            raise UserError(
                f"growth adds layers, channels and heads and changes nothing else, but model.{key} is "
                f"{getattr(small, key)} in the small model and {value} in the grown one; make them equal"
            )
    for key in WIDTHS:
        before, after = width_of(small, key), width_of(large, key)
        if after % before:
            raise UserError(
                f"model.{key}: {before} in the small model cannot grow to {after}; growth copies all of them equally "
                f"often, so give a multiple of {before}"
            )
    if small.head_width != large.head_width:
        raise UserError(
            f"growth adds heads and makes none wider, but they have {small.head_width} channels in the small model and "
            f"{large.head_width} in the grown one; set model.n_heads in proportion to model.dim, or model.head_dim = "
            f"{small.head_width}"
        )
    require_no_fewer(small.n_layers, large.n_layers)
