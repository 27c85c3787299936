"""Writing a Hugging Face LLaMA folder: every linear merged into its dense matrix, one at a time."""

from pathlib import Path
from typing import Any

import torch

from model.config import ModelConfig
from model.hf.config import to_hf
from model.hf.merged import WeightOf
from model.hf.names import DenseTensor, dense_tensors
from model.hf.staging import staged
from model.hf.tokenizer import FolderTokenizer, folder_tokenizer, json_bytes, read_kept
from model.tensor_format import bytes_of, header

SHARD_BYTES = 5_000_000_000
"""Hugging Face's customary limit of one weight file."""


def export_folder(
    config: ModelConfig,
    weight_of: WeightOf,
    tokenizer_file: Path | None,
    out: Path,
    dtype: torch.dtype,
    *,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model, in `dtype` (fp32 or bf16), as a Hugging Face LLaMA folder `out`.

    `tokenizer_file` is a SentencePiece model or a tokenizer.json; without one the folder gets no tokenizer.
    The folder appears complete or not at all, as `staged` says.
    """
    with staged(out, overwrite=overwrite) as folder:
        kept, place = (read_kept(tokenizer_file), tokenizer_file.parent) if tokenizer_file else ({}, out)
        tokenizer = folder_tokenizer(kept, place, config.max_seq_len)
        write_folder(config, weight_of, tokenizer, folder, dtype, shard_bytes=shard_bytes)


def write_folder(
    config: ModelConfig,
    weight_of: WeightOf,
    tokenizer: FolderTokenizer,
    folder: Path,
    dtype: torch.dtype,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the files into `folder`; one weight at a time, as `weight_of` gives it, is in memory."""
    _write_json(folder / "config.json", to_hf(config, dtype) | tokenizer.ids)
    _write_json(folder / "generation_config.json", tokenizer.ids)
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    _write_weights(folder, config, weight_of, dtype, shard_bytes)


def _write_weights(
    folder: Path, config: ModelConfig, weight_of: WeightOf, dtype: torch.dtype, shard_bytes: int
) -> None:
    shards = _plan_shards(config, dtype, shard_bytes)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        weight_map.update({tensor.theirs: file for tensor in shard})
        _write_shard(folder / file, shard, weight_of, dtype)
    if len(shards) > 1:
        total = sum(_bytes(tensor, dtype) for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_shard(path: Path, shard: list[DenseTensor], weight_of: WeightOf, dtype: torch.dtype) -> None:
    """Write one weight file: merged in fp32, rounded once."""
    with path.open("wb") as file:
        file.write(header({tensor.theirs: (dtype, tensor.shape) for tensor in shard}, {"format": "pt"}))
        for tensor in shard:
            weight = weight_of(tensor.ours)
            assert weight.shape == tensor.shape, tensor
            file.write(bytes_of(weight.to(device="cpu", dtype=dtype).contiguous()))


def _plan_shards(config: ModelConfig, dtype: torch.dtype, shard_bytes: int) -> list[list[DenseTensor]]:
    """Consecutive tensors per file, at most `shard_bytes` each unless one tensor alone is larger."""
    shards: list[list[DenseTensor]] = [[]]
    used = 0
    for tensor in dense_tensors(config):
        if shards[-1] and used + _bytes(tensor, dtype) > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += _bytes(tensor, dtype)
    return shards


def _bytes(tensor: DenseTensor, dtype: torch.dtype) -> int:
    return torch.Size(tensor.shape).numel() * dtype.itemsize


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(json_bytes(content))
