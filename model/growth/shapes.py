"""Which shape of a model may grow into which other one."""

from model.config import ModelConfig
from model.errors import UserError
from model.growth.plan import require_no_fewer

WIDTHS = ("dim", "ffn_dim", "n_heads", "n_kv_heads")
"""Keys of [model] that may grow."""

FREE = {"n_layers", "max_seq_len", "init_std", "head_dim", *WIDTHS}
"""Keys that may differ: those that grow, with the width of a head compared by itself, and those that no tensor and no
logit depends on."""


def width_of(model: ModelConfig, key: str) -> int:
    """The value of one of WIDTHS; of key and value heads their number, where the configuration has 0."""
    return model.kv_heads if key == "n_kv_heads" else int(getattr(model, key))


def same_widths(small: ModelConfig, large: ModelConfig) -> bool:
    return all(width_of(small, key) == width_of(large, key) for key in WIDTHS)


def require_widths_grow(small: ModelConfig, large: ModelConfig, how: str) -> None:
    """UserError, in the keys of [growth], unless the widths of `small` can become those of `large`.

    `how` is growth.width: copies of everything equally often, as RMSNorm needs of channels, or "zero".
    """
    for key in WIDTHS:
        before, after = width_of(small, key), width_of(large, key)
        if before > after:
            raise UserError(f"growth.{key} {before} is more than model.{key} {after}; growth only adds, so give less")
        if how == "copy" and after % before:
            other = "" if key == "dim" else ', or growth.width = "zero"'
            raise UserError(
                f"growth.{key} {before} does not divide model.{key} {after}; growth copies all of them equally often, "
                f"so set a divisor{other}"
            )
    if how == "copy":
        return
    if small.dim != large.dim:
        raise UserError(
            f'growth.dim {small.dim} cannot grow with growth.width = "zero": zeros among the channels change what '
            'RMSNorm divides by; set growth.width = "copy", or keep model.dim'
        )
    if small.n_heads * large.kv_heads != large.n_heads * small.kv_heads:
        raise UserError(
            f"growth.n_kv_heads {small.kv_heads} of growth.n_heads {small.n_heads} is not the proportion of "
            f'model.n_kv_heads {large.kv_heads} to model.n_heads {large.n_heads}, which growth.width = "zero" needs; '
            'keep it, or set growth.width = "copy"'
        )


def require_growable(small: ModelConfig, large: ModelConfig, how: str = "copy") -> None:
    """UserError unless `small` may become `large`: in depth and in widths; nothing else that counts differs."""
    for key, value in large:
        if key not in FREE and value != getattr(small, key):
            raise UserError(
                f"growth adds layers, channels and heads and changes nothing else, but model.{key} is "
                f"{getattr(small, key)} in the small model and {value} in the grown one; make them equal"
            )
    require_widths_grow(small, large, how)
    if small.head_width != large.head_width:
        raise UserError(
            f"growth adds heads and makes none wider, but they have {small.head_width} channels in the small model and "
            f"{large.head_width} in the grown one; set model.n_heads in proportion to model.dim, or model.head_dim = "
            f"{small.head_width}"
        )
    require_no_fewer(small.n_layers, large.n_layers)
