"""Writing a Hugging Face LLaMA folder: every linear merged into its dense matrix."""

import stat
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.hf.config import to_hf
from model.hf.names import DenseTensor, dense_tensors
from model.hf.staging import staged
from model.hf.tokenizer import FolderTokenizer, folder_tokenizer, json_bytes, read_kept
from model.linear.base import BaseLinear
from model.transformer import Transformer

SHARD_BYTES = 5_000_000_000
"""Hugging Face's customary limit of one weight file."""


def export_folder(
    model: Transformer,
    tokenizer_file: Path | None,
    out: Path,
    dtype: torch.dtype,
    *,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `model`, in `dtype` (fp32 or bf16), as a Hugging Face LLaMA folder `out`.

    `tokenizer_file` is a SentencePiece model or a tokenizer.json; without one the folder gets no tokenizer.
    The folder appears complete or not at all, as `staged` says.
    """
    with staged(out, overwrite=overwrite) as folder:
        kept, place = (read_kept(tokenizer_file), tokenizer_file.parent) if tokenizer_file else ({}, out)
        tokenizer = folder_tokenizer(kept, place, model.config.max_seq_len)
        write_folder(model, tokenizer, folder, dtype, shard_bytes=shard_bytes)


def write_folder(
    model: Transformer, tokenizer: FolderTokenizer, folder: Path, dtype: torch.dtype, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the files into `folder`; at most `shard_bytes` of merged weights are in memory beside the model."""
    _write_json(folder / "config.json", to_hf(model.config, dtype) | tokenizer.ids)
    _write_json(folder / "generation_config.json", tokenizer.ids)
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    _write_weights(folder, model, dtype, shard_bytes)


def _write_weights(folder: Path, model: Transformer, dtype: torch.dtype, shard_bytes: int) -> None:
    shards = _plan_shards(model, dtype, shard_bytes)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        weight_map.update({tensor.theirs: file for tensor in shard})
        merged = {tensor.theirs: merged_weight(model, tensor, dtype) for tensor in shard}
        _save(merged, folder / file)
    if len(shards) > 1:
        total = sum(_bytes(tensor, dtype) for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a weight file whom all may read that may read its neighbours."""
    path.touch()  # with the rights that a new file has here
    rights = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata={"format": "pt"})  # puts a file in its place that its owner alone may read
    path.chmod(rights)


def _plan_shards(model: Transformer, dtype: torch.dtype, shard_bytes: int) -> list[list[DenseTensor]]:
    """Consecutive tensors per file, at most `shard_bytes` each unless one tensor alone is larger."""
    shards: list[list[DenseTensor]] = [[]]
    used = 0
    for tensor in dense_tensors(model.config):
        if shards[-1] and used + _bytes(tensor, dtype) > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += _bytes(tensor, dtype)
    return shards


def _bytes(tensor: DenseTensor, dtype: torch.dtype) -> int:
    return torch.Size(tensor.shape).numel() * dtype.itemsize


@torch.no_grad()
def merged_weight(model: Transformer, tensor: DenseTensor, dtype: torch.dtype) -> Tensor:
    """The dense weight on the CPU, merged in fp32 and rounded once."""
    module = model.get_submodule(tensor.ours.removesuffix(".weight"))
    weight = module.dense_weight() if isinstance(module, BaseLinear) else module.weight
    assert isinstance(weight, Tensor)
    assert weight.shape == tensor.shape, tensor
    return weight.to(device="cpu", dtype=dtype).contiguous()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(json_bytes(content))
