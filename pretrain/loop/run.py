"""What a run is made of, opened in an order that leaves nothing half-written when something is wrong."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from model.build import support_checksum
from model.counts import count_parameters
from model.errors import RunFailed, UserError
from pretrain.checkpoint.manifest import CheckpointRemoved
from pretrain.checkpoint.read import Checkpoint, has_another, open_folder
from pretrain.checkpoint.save import require_disk_space, save_checkpoint
from pretrain.checkpoint.saver import Saver
from pretrain.checkpoint.store import CheckpointStore
from pretrain.checkpoint.tensors import require_names
from pretrain.config.schema import Config, Stage
from pretrain.config.write import to_toml
from pretrain.data.open import Dataset, open_dataset, require_vocabulary
from pretrain.data.verify import check_at_start
from pretrain.engine.base import Engine
from pretrain.engine.build import build_engine
from pretrain.engine.kernel_choices import apply, decide
from pretrain.loop.build import build, eight_bit
from pretrain.loop.metrics import Metrics
from pretrain.loop.mirror import require_wandb
from pretrain.loop.optional import reason
from pretrain.loop.origin import Start, begin, find_source, require_same_origin
from pretrain.loop.reader import MicroBatchReader
from pretrain.loop.resume import require_same_run, resolve_dtype
from pretrain.loop.state import TrainState
from pretrain.machine.console import Console
from pretrain.machine.distributed import World, gather_outcomes, on_main, require_divisible, shared, together
from pretrain.machine.fault import fault_point
from pretrain.machine.files import replace_text, tolerate_full
from pretrain.memory_plan.copies import copied_bytes, lacks_room
from pretrain.memory_plan.run import require_memory


@dataclass
class Run:
    """A run that is ready for its next step."""

    config: Config
    world: World
    console: Console
    dir: Path
    store: CheckpointStore
    metrics: Metrics
    dataset: Dataset
    held_out: Dataset
    engine: Engine
    state: TrainState
    reader: MicroBatchReader
    """Reads `dataset` ahead of the training thread."""
    saver: Saver
    told: set[str] = field(default_factory=set)
    """What has been said already and is not said again."""
    goes_back: Callable[[], None] | None = None
    """Commits what the run goes on from, in place of this one, after a spike."""

    @property
    def stage(self) -> Stage:
        """The stage that trains; its `config` has the model."""
        return self.config.stages[self.state.stage]


def open_run(
    config: Config, world: World, store: CheckpointStore, start: Start | None = None, first: bool = True
) -> Run:
    """Check the data, take the run folder, build the model and put back what the newest checkpoint holds.

    Where there is none yet, that is what `start` names, committed as the run's own checkpoint of step 0. Begins again
    where another run, named by its folder, has removed that one meanwhile and has a newer one. `first` is false for the
    later stages of a run that grows.
    """
    while True:
        try:
            return _open_run(config, world, store, start, first)
        except CheckpointRemoved as removed:
            alone = world.size > 1 and not getattr(removed, "on_all_ranks", False)
            if start is None or alone or not on_main(world, partial(has_another, start.path)):
                raise
            gc.collect()  # the engine that was begun goes before the next one comes


def _open_run(config: Config, world: World, store: CheckpointStore, start: Start | None, first: bool) -> Run:
    console = Console(world.is_main)
    if first:
        on_main(world, lambda: require_wandb(config.metrics.wandb))
    dataset, held_out, grad_accum_steps = together(world, lambda: _open_data(config, world))
    for path in config.data.paths.values() if first else ():
        if unlisted := on_main(world, partial(check_at_start, path)):
            console.say(unlisted)
    run_dir = Path(config.run.dir)
    source = on_main(world, lambda: find_source(start, config, dataset, store, console.say)) if start else None
    newest = on_main(world, lambda: _claim(store, console))
    source = None if newest else source
    opened = newest or source
    checkpoint = together(world, lambda: open_folder(opened)) if opened else None
    config = on_main(world, lambda: _settle(config, world, dataset, checkpoint if newest else None, start))
    together(world, lambda: require_memory(config, world))
    state = checkpoint.state if checkpoint else TrainState()
    if checkpoint and source and start:
        state = on_main(world, partial(begin, checkpoint, start))

    fault_point("opening")
    engine = _build_engine(config.stages[state.stage].config, world, grad_accum_steps)
    model, device = engine.model, world.device
    state.kernels = on_main(world, lambda: decide(model, config, state.kernels, grad_accum_steps, device))
    together(world, lambda: apply(model, state.kernels))
    if checkpoint:
        warm_up = dataset.batch(0, config.train.micro_batch_size)
        with_optimizer = checkpoint.has_optimizer and not (source and start and start.state == "weights")
        names = [name for name, *_ in engine.whole_tensors()]
        require_names(checkpoint.names(), names, with_optimizer)
        try:
            engine.restore(checkpoint.read, state.updates, warm_up, with_optimizer)
        except CheckpointRemoved:
            engine.close()
            raise
    still = _parameters(config.stages[-1]) / _parameters(config.stages[state.stage])
    on_main(world, lambda: require_disk_space(store, engine.whole_tensors(), config.checkpoint.keep, still))
    if source:
        try:  # from here on the run needs the other's checkpoint no more
            save_checkpoint(store, world, config, state, engine.whole_tensors(), dataset)
        except OSError as full:
            failed = f"the first checkpoint could not be written to {store.folder} ({full}); free some disk space"
            raise shared(RunFailed(failed)) from None
    metrics = together(world, lambda: _open_metrics(config, run_dir, state, console, active=world.is_main))
    reader = MicroBatchReader(dataset, config.train.micro_batch_size, device)
    saver = _open_saver(config, world, console, store, dataset, engine, state)
    return Run(config, world, console, run_dir, store, metrics, dataset, held_out, engine, state, reader, saver)


def _open_data(config: Config, world: World) -> tuple[Dataset, Dataset, int]:
    """Training data, held-out data, micro-steps per update; UserError when they do not fit the model or the batch."""
    train = config.train
    dataset, held_out = open_dataset(config, "train"), open_dataset(config, "val")
    require_vocabulary(dataset, config)
    dataset.require_rows(train.global_batch_size)
    return dataset, held_out, require_divisible(train.global_batch_size, train.micro_batch_size, world.size)


def _claim(store: CheckpointStore, console: Console) -> Path | None:
    """Lock the run folder, clear what a kill has left in it, and find the checkpoint to go on from."""
    store.lock()
    store.clean()
    return store.newest_good(console.say)


def _settle(
    config: Config, world: World, dataset: Dataset, checkpoint: Checkpoint | None, start: Start | None
) -> Config:
    """The configuration with nothing left open, once it is known to be that of the run's own checkpoint."""
    config = resolve_dtype(config, world.device, checkpoint)
    if checkpoint:
        if start:
            require_same_origin(start, checkpoint, config.run.dir)
        require_same_run(config, dataset.fingerprint, checkpoint)
    return config


def _open_metrics(config: Config, run_dir: Path, state: TrainState, console: Console, active: bool) -> Metrics:
    try:
        if active:
            with tolerate_full(
                lambda full: console.say(f"resolved.toml not written ({reason(full)}); training goes on")
            ):
                replace_text(run_dir / "resolved.toml", to_toml(config, comments=True))
        return Metrics(run_dir, state.step, config.metrics.tensorboard, active, console.say)
    except OSError as error:
        raise UserError(
            f"run.dir: {run_dir} cannot be written ({error.strerror}); make room or choose another"
        ) from None


def _open_saver(
    config: Config,
    world: World,
    console: Console,
    store: CheckpointStore,
    dataset: Dataset,
    engine: Engine,
    state: TrainState,
) -> Saver:
    """What saves the run: in the background if it may be and every machine has room for the copies of its ranks."""
    background = config.checkpoint.background
    if background:
        sizes = gather_outcomes(world, copied_bytes(engine.whole_tensors(), world))
        stage = config.stages[state.stage].config
        lacking = list(filter(None, gather_outcomes(world, lacks_room(stage, world, state.kernels, sizes))))
        background = not lacking
        if lacking:
            console.say(f"checkpoints are written while training waits: {lacking[0]}")
    saver = Saver(store, world, config, dataset, console.say, background)
    saver.prepare(engine.whole_tensors)
    return saver


def _parameters(stage: Stage) -> int:
    return count_parameters(stage.config.model, stage.config.linear)["total"]


def _build_engine(config: Config, world: World, grad_accum_steps: int) -> Engine:
    """The engine of one stage, with initial weights; `config` is the stage's."""
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory would cost time and change nothing: every kernel here writes what it takes.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    model = build(config, world.device, how=eight_bit(config, world.device))
    # DeepSpeed broadcasts parameters, not buffers: ranks that drew other supports would train nonsense.
    checksums = gather_outcomes(world, support_checksum(model))
    if len(set(checksums)) > 1:
        differ = f"8-bit codes or sparse supports differ between processes ({checksums}); are their versions equal?"
        raise shared(RunFailed(differ))
    return build_engine(model, config, world, grad_accum_steps)
