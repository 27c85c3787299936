"""Which Hugging Face architectures, with which settings, compute what the network here does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.errors import UserError

ROPE_TYPES = ("default", "llama3")
"""Rotary scalings that are computed here."""

NEEDED = {"llama": (), "mistral": ("num_key_value_heads", "sliding_window", "max_position_embeddings"), "qwen2": ()}
"""By architecture, the fields for which transformers has a default that is not a plain LLaMA's."""

_BIASES = ("attention_bias", "mlp_bias")


def rope_table(hf: dict[str, Any], path: Path) -> dict[str, Any]:
    """Rotary settings: transformers 5 writes `rope_parameters`, transformers 4 `rope_scaling` beside `rope_theta`."""
    found = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: the rotary settings are {repr(found)[:60]}, expected a table")
    return found


def rope_type(rope: dict[str, Any]) -> Any:
    """The kind of rotary scaling, under the name that either generation gives the field."""
    return rope.get("rope_type", rope.get("type", "default"))


def require_representable(hf: dict[str, Any], path: Path) -> None:
    """UserError, which names the field, for what this network does not compute; `hf` is the config.json at `path`."""
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in NEEDED:
        raise UserError(
            f"{path}: model_type is {repr(kind)[:60]}; only folders of type {', '.join(NEEDED)} can be loaded"
        )
    for key in NEEDED[kind]:
        if key not in hf:
            raise UserError(f"{path}: {key} is missing; add it or give a complete Hugging Face {kind} folder")
    for wrong, sentence in _obstacles(hf, kind, rope_table(hf, path)):
        if wrong:
            raise UserError(f"{path}: {sentence}")


def _obstacles(hf: dict[str, Any], kind: str, rope: dict[str, Any]) -> Iterator[tuple[object, str]]:
    for key in (*_BIASES, "quantization_config"):
        yield hf.get(key), f"{key} is set; only folders without it can be loaded"
    yield (
        rope_type(rope) not in ROPE_TYPES,
        f"rope_scaling of type {repr(rope_type(rope))[:60]} is not supported; only llama3 and plain rotary positions "
        "are",
    )
    for table in (hf, rope):
        part = table.get("partial_rotary_factor")
        yield part not in (None, 1), f"partial_rotary_factor is {repr(part)[:60]}; only heads that turn whole are read"
    act = hf.get("hidden_act", "silu")
    yield act != "silu", f'hidden_act is {repr(act)[:60]}; only "silu" folders can be loaded'
    window, length = hf.get("sliding_window"), hf.get("max_position_embeddings")
    reaches_all = window is None or (type(window) is int and type(length) is int and window >= length)
    if kind == "mistral":
        yield (
            not reaches_all,
            f"sliding_window is {repr(window)[:60]}, less than max_position_embeddings {repr(length)[:60]}; only "
            "attention over all tokens is computed here: set both to the window where no sequence will be longer",
        )
    yield (
        hf.get("use_sliding_window"),
        "use_sliding_window is set; only attention over all tokens is computed here",
    )
    layers = hf.get("layer_types")
    yield (
        layers is not None and not (isinstance(layers, list) and all(layer == "full_attention" for layer in layers)),
        "layer_types asks for other layers than full_attention; only those are computed here",
    )
