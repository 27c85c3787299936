"""run.json: what a run is made of, for other programs, from its first step on; summary.json says what it came to."""

import json
import uuid

from kernels.measured import device_name
from model.counts import count_parameters
from pretrain.loop.mirror import Mirror
from pretrain.loop.optional import reason
from pretrain.loop.run import Run
from pretrain.loop.summary import versions
from pretrain.machine.files import read_json, replace_text, tolerate_full
from pretrain.memory_plan.run import planned_moment

ABOUT = "run.json"


def write_about(run: Run) -> None:
    """Rewrite `run.json` for the stage that trains; its "id" stays that of the run's beginning. Says where the disk is
    full; exchanges nothing with others.
    """
    model = run.stage.config.model
    about = {
        "id": read_json(run.dir / ABOUT).get("id") or uuid.uuid4().hex,
        "parameters": count_parameters(model, run.stage.config.linear)["total"],
        "n_layers": model.n_layers,
        "device": device_name(run.world.device),
        "processes": run.world.size,
        "versions": versions(),
        "planned_memory": planned_moment(run.stage, run.state, run.world),
    }
    with tolerate_full(lambda full: run.console.say(f"{ABOUT} not written ({reason(full)}); training goes on")):
        replace_text(run.dir / ABOUT, json.dumps(about, indent=1) + "\n")


def open_mirror(run: Run) -> Mirror | None:
    """The mirror that `metrics.wandb` asks for, of the identity in `run.json`; on rank 0 alone."""
    config = run.config
    if not config.metrics.wandb or not run.world.is_main:
        return None
    identity = str(read_json(run.dir / ABOUT).get("id") or uuid.uuid4().hex)
    return Mirror(config.metrics.wandb, run.dir, identity, config.model_dump(mode="json"), run.console.say)
