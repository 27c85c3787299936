"""The growth itself: a checkpoint of a small model becomes one of a large model, tensor by tensor, file to file."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from model.build import shape_of_model
from model.errors import RunFailed
from model.growth.linears import grow_linears
from model.growth.plan import GrowthPlan
from model.growth.tensors import GrownTensor, fitting, grow_tensors
from model.growth.widening import Widening
from pretrain.checkpoint.folders import step_folder
from pretrain.checkpoint.read import Checkpoint, open_folder
from pretrain.checkpoint.save import WholeTensors, save_checkpoint
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import Config
from pretrain.config.stages import model_size
from pretrain.data.open import Dataset
from pretrain.growth.describe import GrowthTable
from pretrain.loop.run import Run
from pretrain.loop.state import TrainState
from pretrain.machine.distributed import World, on_main
from pretrain.machine.fault import fault_point

OptimizerState = Literal["reset", "copy", "copy_reset_step"]

STEP_COUNTS = ("updates", "count")
"""The optimizer's own, and that of moments which are counted by themselves (pretrain/optim/moments.py)."""


@dataclass(frozen=True)
class Growth:
    """The way from the model of a checkpoint to another one."""

    source: Checkpoint
    plan: GrowthPlan
    target: Config
    """Whose model, linears and seed the grown model has."""
    optimizer: OptimizerState
    widening: Widening

    def state(self, state: TrainState, **changes: object) -> TrainState:
        """`state`, that of the small model, as the grown one goes on from it, with `changes`."""
        kept = self.optimizer == "copy"
        grown = [*state.grown, state.this_stage(self.plan.small)]
        # How linears compute is decided anew: what fitted the small model's memory may not fit this one's.
        fresh = replace(state, grown=grown, updates=state.updates if kept else 0, kernels={}, evaluation_due=False)
        fresh = replace(fresh, losses=[], grad_norms=[])  # another model has another loss
        return replace(fresh, **changes)  # type: ignore[arg-type]

    def tensors(self) -> Iterator[GrownTensor]:
        """All tensors of the grown checkpoint."""
        source, old, new = self.source, self.source.stage.config.linear, self.target.linear
        names = {"model.": [], "optimizer.": []}  # type: dict[str, list[str]]
        for name in source.names():
            prefix = f"{name.partition('.')[0]}."
            names[prefix].append(name.removeprefix(prefix))
        seed, small, large = self.target.run.seed, source.stage.config.model, self.target.model
        deep = grow_tensors(names["model."], lambda name: source.read(f"model.{name}"), self.plan, old)
        wide = self.widening.grow(deep, small, large, old, seed)
        int8 = self.target.optimizer.weights == "int8"
        shapes = shape_of_model(large, new, int8=int8).state_dict()
        for item in fitting(grow_linears(wide, large, old, new, seed), shapes):
            yield item._replace(name=f"model.{item.name}")
        if self.optimizer == "reset":
            return
        for item in grow_tensors(names["optimizer."], lambda name: source.read(f"optimizer.{name}"), self.plan, old):
            if self.optimizer == "copy_reset_step" and item.name.rpartition(".")[2] in STEP_COUNTS:
                item = item._replace(tensor=torch.zeros_like(item.tensor))
            yield item._replace(name=f"optimizer.{item.name}")


def grow(run: Run) -> None:
    """Commit the grown model beside the checkpoint that ends the small one's stage.

    The run goes on as every resume does: from the newest checkpoint. So a kill at any moment leaves either the small
    model, which grows again to the same, or the grown one, which does not grow. Collective.
    """
    on_main(run.world, lambda: _grow(run))


def _grow(run: Run) -> None:
    config, store, state = run.config, run.store, run.state
    after = config.stages[state.stage + 1]
    assert after.plan is not None
    source = open_folder(store.folder / step_folder(state.step))
    growth = Growth(source, after.plan, after.config, config.growth.optimizer, config.growth.widening)
    small, large = (model_size(stage.config, config) for stage in (run.stage, after))
    run.console.say(f"step {state.step}: growing {small} to {large} ({config.growth.operator})")
    fault_point("before_growth")
    grown = growth.state(state, stage=after.index, stage_start=state.step)
    table = write_grown(growth, config, grown, store, run.dataset)
    fault_point("after_growth")
    store.prune(config.checkpoint.keep, run.console.say)
    for line in table.lines():
        run.console.say(f"  {line}")


def write_grown(
    growth: Growth, config: Config, state: TrainState, store: CheckpointStore, dataset: Dataset
) -> GrowthTable:
    """Commit the grown checkpoint of a run with `config` to `store`; returns what became of which tensors.

    For one process. RunFailed when it cannot be written; nothing is left of it then.
    """
    table = GrowthTable(growth.optimizer)

    def whole_tensors() -> WholeTensors:
        for item in growth.tensors():
            table.add(item)
            yield item.name, item.tensor.nbytes, item.tensor.detach

    alone = World(0, 1, torch.device("cpu"))
    try:
        save_checkpoint(store, alone, config, state, whole_tensors(), dataset, grown=True)
    except OSError as error:
        raise RunFailed(
            f"the grown model could not be written to {store.folder} ({error}); free some disk space"
        ) from None
    return table
