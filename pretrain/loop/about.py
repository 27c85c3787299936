"""run.json: what a run is made of, for other programs, from its first step on; summary.json says what it came to."""

import json
import uuid
from pathlib import Path
from typing import Any

from kernels.measured import device_name
from model.counts import count_parameters
from pretrain.loop.optional import reason
from pretrain.loop.run import Run
from pretrain.loop.summary import versions
from pretrain.machine.files import read_regular, replace_text, tolerate_full
from pretrain.memory_plan.run import planned_moment

ABOUT = "run.json"


def write_about(run: Run) -> None:
    """Rewrite `run.json` for the stage that trains; its "id" stays that of the run's beginning. Says where the disk is
    full; exchanges nothing with others.
    """
    model = run.stage.config.model
    about = {
        "id": read_about(run.dir).get("id") or uuid.uuid4().hex,
        "parameters": count_parameters(model, run.stage.config.linear)["total"],
        "n_layers": model.n_layers,
        "device": device_name(run.world.device),
        "processes": run.world.size,
        "versions": versions(),
        "planned_memory": planned_moment(run.stage, run.state, run.world),
    }
    with tolerate_full(lambda full: run.console.say(f"{ABOUT} not written ({reason(full)}); training goes on")):
        replace_text(run.dir / ABOUT, json.dumps(about, indent=1) + "\n")


def read_about(run_dir: Path) -> dict[str, Any]:
    """What `run.json` holds; empty where there is none, or it is damaged."""
    try:
        about = json.loads(read_regular(run_dir / ABOUT).decode())
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
