"""`config.json` of a Hugging Face LLaMA folder."""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from model.config import ModelConfig
from model.errors import UserError
from model.hf.architectures import require_representable, rope_table, rope_type
from model.lfs import refuse_pointer
from model.schema import expected
from model.strict_json import read_object

LLAMA3 = {
    "factor": "rope_factor",
    "low_freq_factor": "rope_low_freq_factor",
    "high_freq_factor": "rope_high_freq_factor",
    "original_max_position_embeddings": "rope_original_len",
}
"""Fields of a rotary scaling of type llama3, and what they are called here."""


def to_hf(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The content of config.json for weights stored in `dtype`, but for the ids of special tokens."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        **_rope_to_hf(config),
        "max_position_embeddings": config.max_seq_len,
        "initializer_range": config.init_std,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _rope_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The key under which every transformers finds the rotary scaling; none where there is none."""
    if config.rope_scaling == "none":
        return {}
    return {"rope_scaling": {"rope_type": "llama3", **{hf: getattr(config, ours) for hf, ours in LLAMA3.items()}}}


def read_config(path: Path) -> ModelConfig:
    """The shape that the config.json at `path` describes; UserError when it is not one of a LLaMA."""
    try:
        hf = read_object(path)
    except (OSError, ValueError) as error:
        refuse_pointer(path)
        raise UserError(f"{path}: not readable as JSON ({error}); give a Hugging Face LLaMA folder") from error
    require_representable(hf, path)
    rope = rope_table(hf, path)
    dim, n_heads = _count(hf, "hidden_size", path), _count(hf, "num_attention_heads", path)
    kv_heads = _count(hf, "num_key_value_heads", path, n_heads)
    head_dim = _count(hf, "head_dim", path, dim // n_heads)
    try:
        return ModelConfig(
            dim=dim,
            n_layers=_count(hf, "num_hidden_layers", path),
            n_heads=n_heads,
            n_kv_heads=0 if kv_heads == n_heads else kv_heads,
            head_dim=0 if head_dim * n_heads == dim else head_dim,
            ffn_dim=_count(hf, "intermediate_size", path),
            vocab_size=_count(hf, "vocab_size", path),
            max_seq_len=_count(hf, "max_position_embeddings", path, 2048),
            rope_theta=_number(rope, "rope_theta", path, _number(hf, "rope_theta", path, 10000.0)),
            **_scaling(rope, path),
            norm_eps=_number(hf, "rms_norm_eps", path, 1e-6),
            tie_embeddings=hf.get("tie_word_embeddings", False),
            init_std=_number(hf, "initializer_range", path, 0.02),
        )
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            sentence = str(first["ctx"]["error"]).replace("model.", "")
            raise UserError(f"{path}: the model's shape cannot be used here: {sentence}") from error
        where = ".".join(str(part) for part in first["loc"]) or "the model's shape"
        got = repr(first["input"])[:60]
        raise UserError(f"{path}: {where} cannot be used here: {expected(first)}, got {got}") from error


def _scaling(rope: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of [model] for a scaling of type llama3; none for plain rotary positions."""
    if rope_type(rope) == "default":
        return {}
    for key in LLAMA3:
        if rope.get(key) is None:
            raise UserError(f"{path}: {key} of the rotary scaling is missing; add it, a llama3 scaling has all four")
    length = rope["original_max_position_embeddings"]
    if type(length) is not int:
        raise UserError(f"{path}: original_max_position_embeddings is {repr(length)[:60]}, expected a whole number")
    floats = {key: _number(rope, key, path, 0.0) for key in LLAMA3 if key != "original_max_position_embeddings"}
    values = floats | {"original_max_position_embeddings": length}
    return {"rope_scaling": "llama3", **{ours: values[hf] for hf, ours in LLAMA3.items()}}


def _count(hf: dict[str, Any], key: str, path: Path, default: int = 0) -> int:
    """A whole number of at least 1; `default`, where there is one, also stands for null and 0."""
    found = hf.get(key)
    value = default if found is None or found == 0 else found
    if key not in hf and not default:
        raise UserError(f"{path}: {key} is missing; add it or give a complete Hugging Face LLaMA folder")
    if type(value) is not int or not 1 <= value <= 2**24:
        raise UserError(f"{path}: {key} is {repr(found)[:60]}, expected a whole number from 1 to {2**24}")
    return value


def _number(hf: dict[str, Any], key: str, path: Path, default: float) -> float:
    """A finite number; `default` also stands for null."""
    value = default if hf.get(key) is None else hf[key]
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise UserError(f"{path}: {key} is {repr(value)[:60]}, expected a number")
    return float(value)
