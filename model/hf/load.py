"""Reading a Hugging Face folder of a LLaMA, ours or anyone's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import ModelConfig
from model.errors import UserError
from model.hf.config import read_config
from model.hf.names import DenseTensor, dense_tensors
from model.lfs import refuse_pointer
from model.strict_json import read_object

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
"""Types of tensors that are weights, by their names in safetensors."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Folder:
    """A Hugging Face folder whose configuration, names, shapes and types fit together; no tensor is read to know that.

    UserError says what does not fit. A head that the file has beside an embedding which the configuration calls the
    same is the exception: the two are compared.
    """

    def __init__(self, path: Path):
        self.path = path
        self._files: dict[str, Path] = {}
        """Where each tensor is, by its name there."""
        self.notes: list[str] = []
        """What had to be decided, in sentences."""
        config = read_config(path / "config.json")
        self._about = dict(self._headers(_weight_files(path)))
        if config.n_layers > len(self._files):  # or the names that are wanted might fill the memory
            raise UserError(
                f"{path}: config.json asks for {config.n_layers} layers, the files hold {len(self._files)} tensors"
            )
        self.config: ModelConfig = self._with_head_of_file(config)
        self._check()

    def tensors(self) -> Iterator[DenseTensor]:
        """All weights, in the order of a forward pass."""
        return dense_tensors(self.config)

    def dtype(self, tensor: DenseTensor) -> torch.dtype:
        """The stored type of a weight."""
        return FLOATS[self._about[tensor.theirs][1]]

    def read(self, tensor: DenseTensor) -> Tensor:
        """A weight in its stored type, on the CPU."""
        return self._read(tensor.theirs)

    def _read(self, name: str) -> Tensor:
        # Opened for each: what has been read of a file is in this process's memory for as long as it is open.
        with _open(self._files[name]) as file:
            return file.get_tensor(name)

    def _headers(self, paths: list[Path]) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
        """Shape and type of every tensor; UserError for one that is in two files."""
        for path in paths:
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118
                    if name in self._files:
                        other = self._files[name].name
                        raise UserError(f"{path}: tensor {name[:200]} is in {other} too; download the folder again")
                    self._files[name] = path
                    part = file.get_slice(name)
                    yield name, (tuple(part.get_shape()), part.get_dtype())

    def _with_head_of_file(self, config: ModelConfig) -> ModelConfig:
        """`config`, untied where the file has another head than the embedding: the weights are what was trained."""
        if not config.tie_embeddings or HEAD not in self._files:
            return config
        if EMBEDDING not in self._files:
            raise UserError(
                f"{self.path}: config.json says that head and embedding are one (tie_word_embeddings), and of the two "
                f"the files have {HEAD} alone; name it {EMBEDDING}, or give a complete folder"
            )
        if self._about[HEAD] == self._about[EMBEDDING] and torch.equal(self._read(HEAD), self._read(EMBEDDING)):
            return config
        self.notes.append(
            f"config.json says that head and embedding are one (tie_word_embeddings), but the files have another "
            f"{HEAD}: the files are followed, with model.tie_embeddings = false"
        )
        return config.model_copy(update={"tie_embeddings": False})

    def _check(self) -> None:
        ignored = {HEAD} if self.config.tie_embeddings else set()
        for name in self._files.keys() - {tensor.theirs for tensor in self.tensors()} - ignored:
            if name.endswith("_proj.bias"):
                self._require_zero(name)
            elif not name.endswith("rotary_emb.inv_freq"):  # old folders store this table; it follows from the config
                raise UserError(
                    f"{self.path}: tensor {name[:200]} does not belong to the LLaMA that config.json describes"
                )
        for tensor in self.tensors():
            if tensor.theirs not in self._files:
                tie = " (or config.json lacks tie_word_embeddings)" if tensor.theirs == HEAD else ""
                raise UserError(f"{self.path}: tensor {tensor.theirs} is missing{tie}; the folder is incomplete")
            shape, dtype = self._about[tensor.theirs]
            if shape != tensor.shape:
                raise UserError(
                    f"{self.path}: tensor {tensor.theirs} is {shape}, but config.json asks for {tensor.shape}; correct "
                    "config.json or download the folder again"
                )
            if dtype not in FLOATS:
                raise UserError(
                    f"{self.path}: tensor {tensor.theirs} is of type {dtype}; only {', '.join(FLOATS)} are read"
                )

    def _require_zero(self, bias: str) -> None:
        """UserError for a bias that is not zero: the projections here have none."""
        if self._about[bias][1] not in FLOATS or self._read(bias).any():
            raise UserError(
                f"{self.path}: tensor {bias} is a bias, which the projections here do not have; only folders without "
                "can be loaded"
            )


def load_folder(path: Path) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]]]:
    """The shape of the model in the folder `path`, and its weights one by one under the names of a dense Transformer.

    Tensors keep their stored dtype. All names and shapes are checked before the first tensor is read; UserError says
    what does not fit.
    """
    folder = Folder(path)
    return folder.config, ((tensor.ours, folder.read(tensor)) for tensor in folder.tensors())


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
