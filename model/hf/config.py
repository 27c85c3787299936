"""`config.json` of a Hugging Face LLaMA folder."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from model.config import ModelConfig
from model.errors import UserError
from model.lfs import refuse_pointer
from model.schema import expected


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
        "max_position_embeddings": config.max_seq_len,
        "initializer_range": config.init_std,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def read_config(path: Path) -> ModelConfig:
    """The shape that the config.json at `path` describes; UserError when it is not a plain LLaMA."""
    try:
        hf = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse_pointer(path)
        raise UserError(f"{path}: not readable as JSON ({error}); give a Hugging Face LLaMA folder") from error
    _require_plain_llama(hf, path)
    dim, n_heads = _required(hf, "hidden_size", path), _required(hf, "num_attention_heads", path)
    kv_heads, head_dim = hf.get("num_key_value_heads") or n_heads, hf.get("head_dim") or dim // n_heads
    try:
        return ModelConfig(
            dim=dim,
            n_layers=_required(hf, "num_hidden_layers", path),
            n_heads=n_heads,
            n_kv_heads=0 if kv_heads == n_heads else kv_heads,
            head_dim=0 if head_dim * n_heads == dim else head_dim,
            ffn_dim=_required(hf, "intermediate_size", path),
            vocab_size=_required(hf, "vocab_size", path),
            max_seq_len=hf.get("max_position_embeddings", 2048),
            rope_theta=float(_rope(hf).get("rope_theta", hf.get("rope_theta", 10000.0))),
            norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
            tie_embeddings=hf.get("tie_word_embeddings", False),
            init_std=float(hf.get("initializer_range", 0.02)),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the model's shape"
        raise UserError(f"{path}: {where} cannot be used here: {expected(first)}, got {first['input']!r}") from error


def _rope(hf: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings: transformers 5 writes `rope_parameters`, transformers 4 `rope_scaling` beside `rope_theta`."""
    return hf.get("rope_parameters") or hf.get("rope_scaling") or {}


def _require_plain_llama(hf: dict[str, Any], path: Path) -> None:
    """UserError for what this network does not compute."""
    if hf.get("model_type") != "llama":
        raise UserError(f'{path}: model_type is {hf.get("model_type")!r}; only "llama" folders can be loaded')
    for key in ("attention_bias", "mlp_bias", "quantization_config"):
        if hf.get(key):
            raise UserError(f"{path}: {key} is set; only LLaMA folders without it can be loaded")
    rope = _rope(hf)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{path}: rope_scaling of type {kind!r} is not supported; only plain rotary positions are")
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f'{path}: hidden_act is {hf["hidden_act"]!r}; only "silu" folders can be loaded')


def _required(hf: dict[str, Any], key: str, path: Path) -> int:
    if key not in hf:
        raise UserError(f"{path}: {key} is missing; add it or give a complete Hugging Face LLaMA folder")
    return hf[key]
