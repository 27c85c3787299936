"""Reading a checkpoint: tensors by name, the numbers and the configuration; a model out of it."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from model.errors import UserError
from model.linear.support.base import check_supports
from model.transformer import Transformer
from pretrain.checkpoint.manifest import BrokenCheckpoint, Manifest, read_manifest, reading, verify_hashes
from pretrain.checkpoint.store import STEP_FOLDER, CheckpointStore
from pretrain.config import load_recorded
from pretrain.config.schema import Config, Stage
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.kernel_choices import apply, can_follow
from pretrain.loop.build import build
from pretrain.loop.state import TrainState


class Checkpoint:
    """One committed checkpoint folder, opened lazily: a tensor is read when it is asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._shard_of: dict[str, Path] = {}
        with reading(folder):
            self.manifest: Manifest = read_manifest(folder)
            self.config: Config = load_recorded(folder / "config.toml")
            self.state = TrainState.from_json(json.loads((folder / "state.json").read_text()))
            self.tokenizer_model = (folder / "tokenizer.model").read_bytes()
            for entry in self.manifest.files:
                if entry.name.endswith(".safetensors"):
                    with safe_open(folder / entry.name, framework="pt") as shard:
                        self._shard_of.update(dict.fromkeys(shard.keys(), folder / entry.name))

    @property
    def stage(self) -> Stage:
        """The stage of the run that it is of; its `config` has the model of these tensors."""
        return self.config.stages[self.state.stage]

    def names(self) -> list[str]:
        return list(self._shard_of)

    @property
    def has_optimizer(self) -> bool:
        """Whether it holds the optimizer's state; a grown model's begins anew."""
        return any(name.startswith("optimizer.") for name in self._shard_of)

    def read(self, name: str) -> Tensor:
        """The whole tensor `name`, on the CPU."""
        if name not in self._shard_of:
            raise UserError(f"{self.folder} holds no tensor {name}; it belongs to another model or version")
        with reading(self.folder), safe_open(self._shard_of[name], framework="pt") as shard:
            return shard.get_tensor(name)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A step's folder, or the newest good checkpoint of a run folder; UserError when there is none."""
    path = Path(path)
    named = STEP_FOLDER.fullmatch(path.name) and path.is_dir()
    for folder in [path] if named else CheckpointStore(path).folders():
        with reading(folder):
            try:
                verify_hashes(folder, read_manifest(folder))
                return Checkpoint(folder)
            except BrokenCheckpoint as reason:
                raise UserError(
                    f"{path}: the checkpoint is not usable: {reason}; name an older step's folder"
                ) from None
    raise UserError(f"{path}: no checkpoint here; give a run folder or one of its checkpoints/step-… folders")


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(checkpoint: Checkpoint, device: torch.device, compute_dtype: torch.dtype | None = None) -> Transformer:
    """The checkpoint's model on `device`; computes as the run did unless `compute_dtype` says otherwise."""
    model = build(checkpoint.stage.config, device, compute_dtype)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(checkpoint.read(f"model.{name}"))
    check_supports(model)
    if compute_dtype is None and can_follow(checkpoint.state.kernels, device):
        apply(model, checkpoint.state.kernels)
    return model.eval()


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer the run was trained with; a checkpoint carries its own copy."""
    with reading(checkpoint.folder):
        return Tokenizer(checkpoint.folder / "tokenizer.model")
