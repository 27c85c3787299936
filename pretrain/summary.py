"""summary.json: what a run came to, for other programs."""

import json
import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kernels.measured import device_name
from model.counts import count_parameters
from model.errors import RunFailed
from pretrain.distributed import World
from pretrain.engine.engine import Engine
from pretrain.evaluate import Evaluation
from pretrain.growth.stages import Stage
from pretrain.memory import peak_bytes, peak_reserved_bytes, peak_resident_bytes
from pretrain.memory_plan.run import planned_bytes
from pretrain.metrics import StepClock
from pretrain.state import TrainState

PACKAGES = ("torch", "deepspeed", "triton", "sentencepiece", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def versions_line() -> str:
    return ", ".join(f"{name} {number}" for name, number in versions().items())


def write_summary(
    run_dir: Path,
    stage: Stage,
    state: TrainState,
    clock: StepClock,
    evaluation: Evaluation | None,
    engine: Engine,
    world: World,
) -> None:
    """Rewrite `summary.json` at the end of a `train`; figures that do not apply are null. RunFailed on a full disk."""
    config = stage.config
    counts = count_parameters(config.model, config.linear)
    stages = [*state.grown, state.this_stage(config.model.n_layers)]
    # A model grown offline brings the tokens of another run along, as it does their seconds.
    speed = state.tokens_seen / state.train_seconds if clock.empty else clock.tokens_per_second()
    summary: dict[str, Any] = {
        "step": state.step,
        "tokens_seen": state.tokens_seen,
        "train_seconds": state.train_seconds,
        "tokens_per_second": speed,
        "val_loss": _finite(evaluation.loss) if evaluation else None,
        "bits_per_byte": _finite(evaluation.bits_per_byte) if evaluation else None,
        "parameters": counts["total"],
        "trainable_parameters": counts["trainable"],
        "flops": state.flops,
        "flops_dense_equivalent": state.flops_dense_equivalent,
        "peak_memory_bytes": peak_bytes(world.device),
        "peak_reserved_bytes": peak_reserved_bytes(world.device),
        "peak_resident_bytes": peak_resident_bytes(),
        "planned_memory_bytes": planned_bytes(stage, state, world),
        "growth_stages": len(stages),
        "growths": len(state.grown),
        "stages": stages,
        "origin": state.origin or None,
        "skipped_steps": state.skipped_steps,
        "low_rank_matrices": engine.low_rank_matrices(),
        "reduced_bytes_per_step": engine.reduced_bytes(),
        "full_gradient_bytes": engine.full_gradient_bytes(),
        "dtype": config.train.dtype,
        "versions": versions(),
        "device": device_name(world.device),
    }
    temporary = run_dir / "summary.json.tmp"
    try:
        temporary.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, run_dir / "summary.json")
    except OSError as error:
        raise RunFailed(f"{run_dir}/summary.json cannot be written ({error.strerror}); the checkpoint is") from None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summary_is_current(run_dir: Path, step: int) -> bool:
    """Whether `summary.json` is of `step` and complete."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text())
        return summary["step"] == step and summary["val_loss"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False
