"""Between two stages of a run."""

from pretrain.checkpoint.read import Checkpoint
from pretrain.checkpoint.store import step_folder
from pretrain.growth.grow import Growth, write_grown
from pretrain.growth.words import model_size
from pretrain.loop.run import Run
from pretrain.machine.distributed import on_main
from pretrain.machine.fault import fault_point


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
    growth = Growth(
        source=Checkpoint(store.folder / step_folder(state.step)),
        plan=after.plan,
        target=after.config,
        optimizer=config.growth.optimizer,
    )
    small, large = (model_size(stage.config, config) for stage in (run.stage, after))
    run.console.say(f"step {state.step}: growing {small} to {large} ({config.growth.operator})")
    fault_point("before_growth")
    grown = growth.state(state, stage=after.index, stage_start=state.step)
    table = write_grown(growth, config, grown, store, run.dataset)
    fault_point("after_growth")
    store.prune(config.checkpoint.keep, run.console.say)
    for line in table.lines():
        run.console.say(f"  {line}")
