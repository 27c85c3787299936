"""Reading a Hugging Face LLaMA folder, ours or anyone's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import ModelConfig
from model.errors import UserError
from model.hf.config import read_config
from model.hf.names import dense_tensors
from model.lfs import refuse_pointer


def load_folder(folder: Path) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]]]:
    """The shape of the model in `folder`, and its weights one by one under the names of a dense Transformer.

    Tensors keep their stored dtype. All names and shapes are checked before the first tensor is read; UserError says
    what does not fit.
    """
    config = read_config(folder / "config.json")
    files = [_open(path) for path in _weight_files(folder)]
    source = {name: file for file in files for name in file.keys()}  # noqa: SIM118
    wanted = {tensor.theirs for tensor in dense_tensors(config)}
    ignored = {"lm_head.weight"} if config.tie_embeddings else set()
    for name in source.keys() - wanted - ignored:
        if not name.endswith("rotary_emb.inv_freq"):  # old folders store this table; it follows from the config
            raise UserError(f"{folder}: tensor {name} does not belong to the LLaMA that config.json describes")
    for tensor in dense_tensors(config):
        if tensor.theirs not in source:
            raise UserError(f"{folder}: tensor {tensor.theirs} is missing; the folder is incomplete")
        shape = tuple(source[tensor.theirs].get_slice(tensor.theirs).get_shape())
        if shape != tensor.shape:
            raise UserError(f"{folder}: tensor {tensor.theirs} is {shape}, but config.json asks for {tensor.shape}")
    return config, ((t.ours, source[t.theirs].get_tensor(t.theirs)) for t in dense_tensors(config))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in _named_in(index)]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if any(folder.glob("*.bin")):
        raise UserError(f"{folder}: only .bin weights, which are pickles and never loaded; convert them to safetensors")
    raise UserError(f"{folder}: no model.safetensors or model.safetensors.index.json; give a Hugging Face LLaMA folder")


def _named_in(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        refuse_pointer(index)
        raise UserError(f"{index}: not an index of weight files; download or export the folder again") from error


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        refuse_pointer(path)
        raise UserError(f"{path}: not a readable safetensors file ({error}); download or export it again") from error
