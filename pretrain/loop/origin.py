"""`sparlow train --from`: a new run that begins with another run's checkpoint, and the record of which one that was."""

from collections.abc import Callable
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import Any, Literal

from model.build import shape_of_model
from model.config import ROPE_SCALING_KEYS
from model.counts import linear_shapes
from model.errors import UserError
from model.linear.ranks import same_linears
from pretrain.checkpoint.folders import STEP_FOLDER
from pretrain.checkpoint.manifest import file_sha256, reading
from pretrain.checkpoint.read import Checkpoint, open_checkpoint, require_same_tokenizer
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import Config
from pretrain.data.open import Dataset
from pretrain.loop.state import TrainState

ROPE = ("rope_theta", "rope_scaling", *ROPE_SCALING_KEYS)

NO_WEIGHTS = ("max_seq_len", "init_std", *ROPE)
"""Keys of [model] that may change: no tensor depends on them (context is extended by other rotary frequencies)."""

NO_STATE = (
    *("lr", "betas", "eps", "eps_mode", "weight_decay", "cautious", "grams", "orthograd", "factor_lr_ratio", "scale"),
    *("update", "accumulators"),
)
"""Keys of [optimizer] that moments may outlive: they decide neither what is kept nor in which form."""


@dataclass(frozen=True)
class Start:
    """What a new run begins with."""

    path: str
    """A run folder (its newest checkpoint) or one step's folder."""
    state: Literal["weights", "all"] = "weights"
    """all: with the optimizer's moments, and its own count of updates, which bias correction goes by."""


def find_source(
    start: Start, config: Config, dataset: Dataset, store: CheckpointStore, say: Callable[[str], None]
) -> Path | None:
    """The checkpoint that the run of `config` begins with; None where that run has begun already.

    Writes nothing. UserError where the checkpoint does not fit, or the run is in the folder that it would begin in.
    """
    if _run_folder(Path(realpath(start.path))) == Path(realpath(config.run.dir)):
        raise UserError(
            f"--from {start.path} is run.dir itself; give the new run another folder with --run.dir=NEW, or leave "
            "--from out to go on with the old one"
        )
    if store.folders():
        return None
    checkpoint = open_checkpoint(start.path)
    _require_same_model(start, checkpoint, config)
    if start.state == "all":
        _require_same_optimizer(start, checkpoint, config)
    if note := require_same_tokenizer(checkpoint, dataset, config.data.named, start.path):
        say(note)
    there, here = checkpoint.stage.config.model, config.model
    for changed in _differences("model", there, here, tuple(set(type(here).model_fields) - {*ROPE})):
        say(f"--from {start.path}: {changed}")
    return checkpoint.folder


def require_same_origin(start: Start, checkpoint: Checkpoint, run_dir: str) -> None:
    """UserError unless `checkpoint`, of the run in `run_dir`, is of one that began as `start` says.

    The source itself may have trained on or be gone since.
    """
    origin = checkpoint.state.origin
    if not origin:
        raise UserError(
            f"run.dir: {run_dir} holds a run that began without --from; choose another folder, or leave --from out to "
            "go on with it"
        )
    path = Path(realpath(start.path))
    name = path.name if STEP_FOLDER.fullmatch(path.name) else origin["checkpoint"]
    folder = path if name == path.name else path / "checkpoints" / name
    manifest = folder / "manifest.json"
    same = (_run_folder(path).name, name, start.state) == (origin["run"], origin["checkpoint"], origin["state"])
    if not same or (manifest.is_file() and file_sha256(manifest) != origin["manifest_sha256"]):
        raise UserError(
            f"run.dir: {run_dir} holds a run that began with {describe(origin)}, not with this --from and "
            "--from-state; choose another folder, or leave them out to go on with it"
        )


def begin(source: Checkpoint, start: Start) -> TrainState:
    """Make the state of a run before its first step that begins with `source`."""
    with reading(source.folder):
        manifest_sha256 = file_sha256(source.folder / "manifest.json")
    origin = {
        "run": _run_folder(source.folder.resolve()).name,
        "checkpoint": source.folder.name,
        "step": source.state.step,
        "tokens_seen": source.state.tokens_seen,
        "state": start.state,
        "config_hash": source.manifest.config_hash,
        "manifest_sha256": manifest_sha256,
    }
    return TrainState(updates=source.state.updates if start.state == "all" else 0, origin=origin)


def describe(origin: dict[str, Any]) -> str:
    """A recorded origin in words."""
    what = "the weights and moments" if origin["state"] == "all" else "the weights"
    return f"{what} of step {origin['step']} of {origin['run']} ({origin['tokens_seen']:,} tokens seen)"


def _run_folder(path: Path) -> Path:
    """The run that `path`, a run folder or one step's, belongs to."""
    if not STEP_FOLDER.fullmatch(path.name):
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _require_same_model(start: Start, checkpoint: Checkpoint, config: Config) -> None:
    """UserError unless the tensors of `checkpoint` are those of the model that the run trains first."""
    there, here = checkpoint.stage.config, config.stages[0].config
    changed = _differences("model", there.model, here.model, NO_WEIGHTS)
    if not same_linears(there.linear, here.linear, linear_shapes(here.model)):
        changed += _differences("linear", there.linear, here.linear)
    weights = there.optimizer.weights, here.optimizer.weights
    if weights[0] != weights[1] and "int8" in weights:
        changed.append(f"optimizer.weights was {weights[0]!r}, is {weights[1]!r}")
    if changed:
        first = ", whose first model growth makes small" if config.growth.enabled else ""
        raise UserError(
            f"--from {start.path} holds another model than this run{first}: {'; '.join(changed)}; restore these, or "
            "give a checkpoint of the same model"
        )
    shapes = shape_of_model(here.model, here.linear, int8=weights[1] == "int8").state_dict()
    if {f"model.{name}" for name in shapes} != {name for name in checkpoint.names() if name.startswith("model.")}:
        raise UserError(f"--from {start.path}: its tensors are not those of its own model; the checkpoint is damaged")


def _require_same_optimizer(start: Start, checkpoint: Checkpoint, config: Config) -> None:
    """UserError unless the moments of `checkpoint` are moments of the run's optimizer."""
    if not checkpoint.has_optimizer:
        raise UserError(
            f"--from-state all: {checkpoint.folder} {checkpoint.no_optimizer}; use "
            "--from-state weights, or give a checkpoint of a later step"
        )
    changed = _differences("optimizer", checkpoint.stage.config.optimizer, config.stages[0].config.optimizer, NO_STATE)
    if changed:
        raise UserError(
            f"--from-state all needs the optimizer that {start.path} has moments of, but {'; '.join(changed)}; restore "
            "these, or use --from-state weights"
        )


def _differences(section: str, there: Any, here: Any, apart: tuple[str, ...] = ()) -> list[str]:
    """Keys of a table that differ, with both values; those of another member are all said by its name."""
    keys = ["name"] if getattr(there, "name", "") != getattr(here, "name", "") else list(type(here).model_fields)
    return [
        f"{section}.{key} was {getattr(there, key)!r}, is {getattr(here, key)!r}"
        for key in keys
        if key not in apart and getattr(there, key) != getattr(here, key)
    ]
