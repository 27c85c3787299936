"""A record of each run, for other programs: results.json."""

import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.counts import count_linear_parameters, count_parameters
from pretrain.compare.matrix import Run
from pretrain.compare.outcome import Outcome
from pretrain.config.schema import Config
from pretrain.loop.records import Record, read_records
from pretrain.memory_plan.memory import plan_stage
from pretrain.memory_plan.rest import at_rest

KEPT = ("weights", "masters", "support", "gradients", "moments", "projections", "accumulators")
"""Items of a plan that are what a method trains: not activations, nor what an operation needs for itself."""
END_PART = 0.05
"""Part of the steps, at the end, whose mean is the training loss at the end: that of a single one is noise."""

COPIED = (
    *("step", "tokens_seen", "val_loss", "bits_per_byte", "flops", "flops_dense_equivalent"),
    *("train_seconds", "tokens_per_second", "peak_memory_bytes", "peak_resident_bytes", "skipped_steps", "dtype"),
    *("versions", "device"),
)
"""Figures of summary.json."""


def entry(run: Run, outcome: Outcome) -> dict[str, Any]:
    """One run's record: what it was, what it came to, what it took, and by which code on what."""
    config, summary, note = run.config, outcome.summary, outcome.note
    counts = count_parameters(config.model, config.linear)
    on_gpu = summary.get("peak_memory_bytes") is not None
    return {
        "method": run.method,
        "rate": run.rate,
        "seed": run.seed,
        "budget": run.budget,
        "steps": run.steps,
        "folder": str(run.folder),
        "status": outcome.status,
        "reason": outcome.reason or None,
        **{key: summary.get(key) for key in COPIED},
        "train_loss": training_loss(records(run), run.steps),
        "parameters": counts["total"],
        "trainable_parameters": counts["trainable"],
        "linear_parameters": count_linear_parameters(config.model, config.linear),
        **memory(config, summary.get("dtype") or config.train.dtype, on_gpu),
        "wall_seconds": note.get("seconds"),
        "commit": note.get("commit"),
        "hardware": note.get("hardware"),
    }


def as_json(entries: list[dict[str, Any]]) -> str:
    """What results.json says."""
    return json.dumps(entries, indent=1) + "\n"


def records(run: Run) -> list[Record]:
    """Its logged steps; none where it has not logged any."""
    try:
        return read_records(run.folder / "metrics.jsonl")[0]
    except OSError:
        return []


def training_loss(logged: list[Record], steps: int) -> float | None:
    """Mean of the training losses logged in the last 5 % of the steps, and of the last one at least."""
    known = [(record["step"], record["train/loss"]) for record in logged if record.get("train/loss") is not None]
    late = [loss for step, loss in known if step > (1 - END_PART) * steps] or [loss for _, loss in known[-1:]]
    return sum(late) / len(late) if late else None


def memory(config: Config, dtype: str, on_gpu: bool) -> dict[str, int]:
    """Planned bytes: of weights and optimizer state, and of these with gradients when they come to most in a step.

    Those of the last model, where it grows. The learning rate, the seed and the length change nothing.
    """
    last = config.stages[-1].config
    plain = last.model_copy(
        update={
            "run": type(last.run)(),
            "optimizer": last.optimizer.model_copy(update={"lr": 1.0}),
            "schedule": type(last.schedule)(),
            "train": last.train.model_copy(update={"dtype": dtype}),
        }
    )
    return _memory(plain, on_gpu)


@lru_cache(maxsize=256)
def _memory(config: Config, on_gpu: bool) -> dict[str, int]:
    plan = plan_stage(config, cuda=on_gpu)
    trained = (sum(moment.items.get(item, 0) for item in KEPT) for moment in plan.phases.values())
    return {"planned_state_bytes": at_rest(config, 1, on_gpu), "planned_bytes": max(trained)}


def here() -> dict[str, Any]:
    """The commit that makes a run which begins now, and the machine: code may change while a comparison goes on."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found = ""
    return {"commit": found or None, "hardware": {"cores": len(os.sched_getaffinity(0)), "host_gib": _host_gib()}}


def _host_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
