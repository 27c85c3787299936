"""`sparlow grow`: a new run that begins with the grown model of another run's checkpoint."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.counts import projection_shapes
from model.errors import UserError
from model.growth import plan_growth
from model.growth.linears import linears_alike, require_linears_growable, require_ranks_growable
from model.growth.plan import GrowthOptions, GrowthPlan
from model.growth.shapes import require_growable, same_widths
from model.growth.tensors import require_silenceable
from model.growth.widening import Widening, Width
from model.growth.width import require_linears_widen
from pretrain.checkpoint.folders import step_folder
from pretrain.checkpoint.read import Checkpoint, on_newest, require_same_tokenizer
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.growth_checks import require_layers_alike, require_no_zeroed_codes
from pretrain.config.schema import Config
from pretrain.config.stages import counted
from pretrain.data.open import open_dataset
from pretrain.growth.describe import GrowthTable
from pretrain.growth.grow import Growth, OptimizerState, write_grown

COPIES = Widening()


@dataclass(frozen=True)
class Grown:
    """What `grow_offline` has made."""

    folder: Path
    """The new run's first checkpoint."""
    layers: tuple[int, int]
    """Layers of the small model and of the grown one."""
    continues_data: bool
    """Whether the new run goes on in the source's data; else it begins at the corpus' start."""
    table: GrowthTable


def grow_offline(
    source: str | Path,
    config: Config,
    operator: str,
    options: GrowthOptions,
    optimizer: OptimizerState,
    widening: Widening = COPIES,
) -> Grown:
    """Grow the checkpoint `source` into `config`'s model, as the first checkpoint of the run that `config` describes.

    `sparlow train` with the same configuration goes on from it: steps and schedule begin anew, while the tokens and
    FLOPs of the source are counted on. UserError, with nothing written, where the one is no growth of the other.
    """
    given = (operator, options, optimizer, widening)
    return on_newest(source, lambda checkpoint: _grow(checkpoint, source, config, *given))


def _grow(
    checkpoint: Checkpoint,
    source: str | Path,
    config: Config,
    operator: str,
    options: GrowthOptions,
    optimizer: OptimizerState,
    widening: Widening,
) -> Grown:
    config = _with_dtype_of(checkpoint, config)
    small = checkpoint.stage.config
    plan = _plan(small, config, source, operator, options, widening.how)
    require_no_zeroed_codes(config, plan)
    require_silenceable(config.linear, plan)
    if widening != COPIES and same_widths(small.model, config.model):
        raise UserError("--width and --share-spread have no effect where nothing grows in width; leave them out")
    before, after = small.optimizer.weights, config.optimizer.weights
    if before != after and "int8" in (before, after):
        raise UserError(
            f'optimizer.weights = "{after}" cannot go on from "{before}" of the small model; keep "{before}"'
        )
    if optimizer != "reset":
        _require_same_optimizer(checkpoint, config, optimizer, plan)
    dataset = open_dataset(config, "train")
    require_same_tokenizer(checkpoint, dataset, config.data.named, str(source))
    same_data = dataset.fingerprint == checkpoint.manifest.data_fingerprint
    continues = same_data and _order(config) == _order(checkpoint.config)
    store = CheckpointStore(Path(config.run.dir))
    store.lock()
    try:
        store.clean()
        if store.folders():
            raise UserError(f"run.dir: {config.run.dir} holds checkpoints already; choose another")
        store.newest_good(print)  # there is none, and there was none
        growth = Growth(checkpoint, plan, config, optimizer, widening)
        counts = ("step", "stage", "stage_start", "skipped_steps", "consecutive_skips", "spikes")
        zero: dict[str, Any] = dict.fromkeys(counts, 0) | {"skips": {}, "rewinds": []}
        if not same_data:
            zero["sources"] = {}
        state = growth.state(checkpoint.state, cursor=checkpoint.state.cursor if continues else 0, **zero)
        table = write_grown(growth, config, state, store, dataset)
    finally:
        store.unlock()
    layers = (small.model.n_layers, config.model.n_layers)
    return Grown(store.folder / step_folder(0, grown=True), layers, continues, table)


def _with_dtype_of(checkpoint: Checkpoint, config: Config) -> Config:
    """train.dtype "auto" becomes the source's, or bf16 where weights are stored in it."""
    if config.train.dtype != "auto":
        return config
    dtype = "bf16" if config.optimizer.weights.startswith("bf16") else checkpoint.config.train.dtype
    return config.model_copy(update={"train": config.train.model_copy(update={"dtype": dtype})})


def _plan(
    small: Config, config: Config, source: str | Path, operator: str, options: GrowthOptions, width: Width
) -> GrowthPlan:
    """How the layers of `small` become those of `config`; UserError where one is no growth of the other."""
    if config.growth.enabled:
        raise UserError(
            "growth.enabled = true lets `sparlow train` grow the model by itself; for `sparlow grow` give the grown "
            "model's configuration with growth.enabled = false"
        )
    try:
        require_growable(small.model, config.model, width)
    except UserError as error:
        # What [growth] says of the small model, the checkpoint does here.
        text = str(error).replace('growth.width = "', '--width "')
        raise UserError(re.sub(r"growth\.(\w+) (\d+)", r"the small model's \1 \2", text)) from None
    require_linears_growable(small.linear, config.linear)
    tables = any(getattr(linear, "ranks", ()) for linear in (small.linear, config.linear))
    for key in ("density",) if tables else ("rank", "density"):
        before, after = (getattr(linear, key, 0) for linear in (small.linear, config.linear))
        if after < before:
            raise UserError(
                f"linear.{key} {after} is less than the small model's {before}; growth only adds, so give {before} or "
                "more"
            )
    layers, grown_layers = small.model.n_layers, config.model.n_layers
    wider = not same_widths(small.model, config.model)
    if (layers, small.linear) == (grown_layers, config.linear) and not wider:
        raise UserError(
            f"model.n_layers: {source} has {counted(layers, 'layer')} and these linears already; give a larger model"
        )
    if wider and "int8" in (small.optimizer.weights, config.optimizer.weights):
        raise UserError(
            'optimizer.weights = "int8" keeps codes, which have no copy in a wider model; keep the widths of [model]'
        )
    require_linears_widen(small.model, config.model, small.linear, config.linear, width)
    try:
        plan = plan_growth(operator, layers, grown_layers, options)
    except UserError as error:
        # An operator names the keys of [growth], which are options here.
        text = str(error).replace("growth.factor", "model.n_layers")
        for key in ("operator", "order", "source_layers", "function_preserving"):
            text = text.replace(f"growth.{key}", f"--{key.replace('_', '-')}")
        raise UserError(text) from None
    require_ranks_growable(small.linear, config.linear, plan, projection_shapes(config.model))
    return plan


def _require_same_optimizer(checkpoint: Checkpoint, large: Config, optimizer: str, plan: GrowthPlan) -> None:
    """UserError unless moments of one are moments of the other."""
    small = checkpoint.stage.config
    if not checkpoint.has_optimizer:
        raise UserError(
            f"--optimizer {optimizer}: {checkpoint.folder} {checkpoint.no_optimizer}; use "
            '"reset", or give a checkpoint of a later step'
        )
    alike = linears_alike(small.linear, large.linear, plan, projection_shapes(large.model))
    if not (alike and same_widths(small.model, large.model)):
        raise UserError(
            f'--optimizer {optimizer} copies moments of the same shape only; use "reset", or keep [linear] and the '
            "widths of [model]"
        )
    for key, value in large.optimizer:
        if key not in ("lr", "weight_decay") and value != getattr(small.optimizer, key, None):
            raise UserError(
                f"--optimizer {optimizer} needs the same optimizer, but optimizer.{key} was "
                f'{getattr(small.optimizer, key, "(absent)")!r} and is {value!r}; use "reset", or restore it'
            )
    require_layers_alike(large, f"--optimizer {optimizer}", 'use "reset"')


def _order(config: Config) -> tuple[object, ...]:
    """What decides which tokens a cursor means."""
    weights = sorted((name, source.weight) for name, source in config.data.mixture.items())
    return config.train.seq_len, config.data.packing, config.run.seed, weights
