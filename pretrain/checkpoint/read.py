"""Reading a checkpoint: tensors by name, the numbers and the configuration; a model out of it."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.errors import UserError
from model.hf.kept import KEPT, MODEL
from model.linear.support.base import check_supports
from model.strict_json import parse_object, read_plain
from model.transformer import Transformer
from pretrain.checkpoint.folders import STEP_FOLDER
from pretrain.checkpoint.manifest import (
    WITH_MODEL,
    BrokenCheckpoint,
    CheckpointRemoved,
    Manifest,
    read_manifest,
    reading,
    verify_hashes,
)
from pretrain.checkpoint.store import CheckpointStore
from pretrain.checkpoint.tensors import Stored, most_layers, require_tensors
from pretrain.config import load_recorded
from pretrain.config.schema import Config, Stage
from pretrain.data.open import Dataset
from pretrain.data.tokenizer import Tokenizer, kept_tokenizer
from pretrain.engine.kernel_choices import apply, can_follow
from pretrain.loop.build import build
from pretrain.loop.state import TrainState
from pretrain.machine.distributed import World, on_main, together

T = TypeVar("T")

ALONE = World(0, 1, torch.device("cpu"))

LARGEST = {"config.toml": 2**20, "state.json": 2**24} | dict.fromkeys(KEPT, 2**28)
"""Bytes that each file which is held in memory may have."""

MOST_LETTERS = 2000
"""Length of a sentence on a configuration, which may have a thousand wrong keys."""


class Checkpoint:
    """One committed checkpoint folder, opened lazily: a tensor is read when it is asked for.

    What it holds is taken for a stranger's: UserError unless everything in it fits together, said before memory is
    taken for a model.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._shard_of: dict[str, Path] = {}
        self._open: tuple[Path, safe_open] | None = None
        with reading(folder):
            self.manifest: Manifest = read_manifest(folder)
            texts = {name: self._file(name) for name in self._documents()}
            self.tokenizer_files = {name: texts[name] for name in KEPT if name in texts}
            stored = dict(self._headers())
            with self._named():
                self.config: Config = load_recorded(folder / "config.toml", most_layers(stored))
                self.state = read_state(texts["state.json"])
                self._require_place()
                require_tensors(stored, self.stage.config)

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

    @property
    def no_optimizer(self) -> str:
        """Why there is no state of an optimizer, where there is none: half a sentence."""
        grown = "-grown" in self.folder.name
        return f"holds no optimizer state, as its model {'has just grown' if grown else 'was imported'}"

    def read(self, name: str) -> Tensor:
        """The whole tensor `name`, on the CPU."""
        if name not in self._shard_of:
            raise UserError(f"{self.folder} holds no tensor {name}; it belongs to another model or version")
        path = self._shard_of[name]
        with reading(self.folder), _sound(path):
            if self._open is None or self._open[0] != path:  # opening a file reads what it says of all its tensors
                self._open = path, safe_open(path, framework="pt")
            return self._open[1].get_tensor(name)

    def _documents(self) -> list[str]:
        """The files that are held in memory: all of LARGEST, but what it does not have of its tokenizer."""
        required = {"config.toml", "state.json"}
        if self.manifest.format_version <= WITH_MODEL:
            required.add(MODEL)
        return [name for name in LARGEST if name in required or any(e.name == name for e in self.manifest.files)]

    def _file(self, name: str) -> bytes:
        """The content of a file that must be there, once it is known to be what was written."""
        entry = next((entry for entry in self.manifest.files if entry.name == name), None)
        if entry is None:
            raise BrokenCheckpoint(f"manifest.json does not list {name}")
        try:
            data = read_plain(self.folder / name, LARGEST[name])
        except ValueError as error:
            raise UserError(f"{self.folder / name}: {error}") from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BrokenCheckpoint(f"{name} is damaged (sha256 differs)")
        return data

    def _headers(self) -> Iterator[tuple[str, Stored]]:
        """What the tensor files say that they hold."""
        for entry in self.manifest.files:
            if not entry.name.endswith(".safetensors"):
                continue
            path = self.folder / entry.name
            with _sound(path), safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118
                    if name in self._shard_of:
                        raise UserError(f"{path}: tensor {name[:200]} is in another file too; use another checkpoint")
                    self._shard_of[name] = path
                    part = shard.get_slice(name)
                    yield name, Stored(tuple(part.get_shape()), part.get_dtype())

    def _require_place(self) -> None:
        """UserError where folder, manifest, configuration and numbers are of different steps or runs."""
        state, stages = self.state, self.config.stages
        found = STEP_FOLDER.fullmatch(self.folder.resolve().name)
        for wrong, sentence in (
            (state.step != self.manifest.step, f"state.json is of step {state.step}, the manifest of another"),
            (found and int(found[1]) != state.step, f"holds step {state.step}, which is not that of its name"),
            (state.stage >= len(stages), f"stage {state.stage} of a run of {len(stages)}"),
            (state.step > stages[-1].end, f"step {state.step} of a run of {stages[-1].end} steps"),
        ):
            if wrong:
                raise UserError(f"{sentence}; use another checkpoint")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Put the folder's name in front of a sentence that does not have it."""
        try:
            yield
        except UserError as error:
            if isinstance(error, CheckpointRemoved):
                raise
            sentence = str(error)[:MOST_LETTERS]
            raise UserError(sentence if str(self.folder) in sentence else f"{self.folder}: {sentence}") from None


def read_state(data: bytes) -> TrainState:
    """The numbers in the content of a state.json; UserError unless every one is what a run may have written."""
    try:
        fields = parse_object(data)
    except ValueError as error:
        raise UserError(f"state.json: {error}; use another checkpoint") from None
    return TrainState.from_json(fields)


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Say in a sentence (UserError) that a tensor file is none, whatever its manifest says of it."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file that can be read ({error}); use another checkpoint") from None


def open_folder(folder: Path, verify: bool = False) -> Checkpoint:
    """The checkpoint in `folder`, `verify` asking for every byte to be read first; UserError when it is damaged."""
    try:
        with reading(folder):
            if verify:
                verify_hashes(folder, read_manifest(folder))
            return Checkpoint(folder)
    except BrokenCheckpoint as reason:
        raise UserError(f"{folder}: the checkpoint is not usable: {reason}; name an older step's folder") from None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A step's folder, or the newest good checkpoint of a run folder; UserError when there is none."""
    return open_folder(_find(Path(path)), verify=True)


def on_newest(path: str | Path, work: Callable[[Checkpoint], T], world: World = ALONE) -> T:
    """Do `work` with the checkpoint that `path` names, the same one on every rank of `world`.

    A run that trains on may remove it in the middle. Where `path` is its folder, the work is done again, with the
    checkpoint that is the newest by then; UserError (CheckpointRemoved) where there is none. Collective.
    """
    while True:
        try:
            checkpoint = on_main(world, lambda: open_checkpoint(path).folder)
            return together(world, partial(_work_on, checkpoint, work))
        except CheckpointRemoved:
            if not on_main(world, lambda: has_another(path)):
                raise


def has_another(path: str | Path) -> bool:
    """Whether there is another checkpoint in the place of one that `path` named and that is gone."""
    return not STEP_FOLDER.fullmatch(Path(path).name) and bool(CheckpointStore(Path(path)).folders())


def _work_on(folder: Path, work: Callable[[Checkpoint], T]) -> T:
    return work(open_folder(folder))


def _find(path: Path) -> Path:
    try:
        if STEP_FOLDER.fullmatch(path.name) and path.is_dir():
            return path
    except OSError as error:  # of a name that is too long
        raise UserError(f"{str(path)[:200]}: cannot be read ({error.strerror})") from None
    for folder in CheckpointStore(path).folders():
        return folder
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


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer the run was trained with, of which a checkpoint carries its own copy.

    None where it was trained on ids that came without one.
    """
    return kept_tokenizer(checkpoint.folder, checkpoint.tokenizer_files)


def require_same_tokenizer(checkpoint: Checkpoint, dataset: Dataset, corpus: str, source: str) -> str | None:
    """UserError where `dataset` has the ids of another tokenizer than `checkpoint`; the names are for the sentence.

    Where one of them has no tokenizer nobody can tell, which the returned sentence says.
    """
    own, other, rows = tokenizer_of(checkpoint), dataset.tokenizer, checkpoint.stage.config.model.vocab_size
    if own and other and own.identity != other.identity:
        raise UserError(
            f"{corpus} was not made with the tokenizer that {source} was trained with; prepare it with --tokenizer "
            f"{own.path}"
        )
    if dataset.vocab_size > rows:
        raise UserError(
            f"{corpus} has ids up to {dataset.vocab_size - 1}, where {source} was trained with model.vocab_size "
            f"{rows}; prepare it with the tokenizer of that run"
        )
    if own and other:
        return None
    if own:
        return f"{corpus} has no tokenizer, nor gets a run on it one: nothing shows that its ids are those of {source}"
    return f"{source} has no tokenizer, so nothing shows that its ids are those of {corpus}"
