"""Reading a Hugging Face LLaMA folder, ours or anyone's."""

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
from model.strict_json import read_object

FLOATS = ("F32", "BF16", "F16", "F64")
"""Types of tensors that are weights, by their names in safetensors."""


def load_folder(folder: Path) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]]]:
    """The shape of the model in `folder`, and its weights one by one under the names of a dense Transformer.

    Tensors keep their stored dtype. All names and shapes are checked before the first tensor is read; UserError says
    what does not fit.
    """
    config = read_config(folder / "config.json")
    files = [_open(path) for path in _weight_files(folder)]
    source = {name: file for file in files for name in file.keys()}  # noqa: SIM118
    if config.n_layers > len(source):  # or the names that are wanted might fill the memory
        raise UserError(
            f"{folder}: config.json asks for {config.n_layers} layers, the files hold {len(source)} tensors"
        )
    wanted = {tensor.theirs for tensor in dense_tensors(config)}
    ignored = {"lm_head.weight"} if config.tie_embeddings else set()
    for name in source.keys() - wanted - ignored:
        if not name.endswith("rotary_emb.inv_freq"):  # old folders store this table; it follows from the config
            raise UserError(f"{folder}: tensor {name[:200]} does not belong to the LLaMA that config.json describes")
    for tensor in dense_tensors(config):
        if tensor.theirs not in source:
            raise UserError(f"{folder}: tensor {tensor.theirs} is missing; the folder is incomplete")
        found = source[tensor.theirs].get_slice(tensor.theirs)
        shape, dtype = tuple(found.get_shape()), found.get_dtype()
        if shape != tensor.shape:
            raise UserError(f"{folder}: tensor {tensor.theirs} is {shape}, but config.json asks for {tensor.shape}")
        if dtype not in FLOATS:
            raise UserError(f"{folder}: tensor {tensor.theirs} is of type {dtype}; only {', '.join(FLOATS)} are read")
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
        names = sorted(set(read_object(index)["weight_map"].values()))
        if not all(isinstance(name, str) and name.isprintable() and Path(name).name == name for name in names):
            raise ValueError("it names files elsewhere")
        return names
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        refuse_pointer(index)
        raise UserError(f"{index}: not an index of weight files; download or export the folder again") from error


def _open(path: Path) -> Any:
    try:
        if not path.is_file():  # a pipe would never end
            raise FileNotFoundError("no such file")
        return safe_open(path, framework="pt")
    except (OSError, ValueError, SafetensorError) as error:
        refuse_pointer(path)
        raise UserError(f"{path}: not a readable safetensors file ({error}); download or export it again") from error
