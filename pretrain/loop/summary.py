"""summary.json: what a run came to, for other programs."""

import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kernels.measured import device_name
from model.counts import count_parameters
from model.errors import RunFailed
from pretrain.loop.metrics import StepClock
from pretrain.loop.optional import reason
from pretrain.loop.run import Run
from pretrain.machine.files import read_regular, replace_text
from pretrain.machine.memory import peak_bytes, peak_reserved_bytes, peak_resident_bytes
from pretrain.memory_plan.run import planned_bytes
from pretrain.using.evaluate import Evaluation

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


def write_summary(run: Run, clock: StepClock, evaluation: Evaluation | None, error: Exception | None = None) -> None:
    """Rewrite `summary.json` at the end of a `train`, which `error` may have ended. RunFailed on a full disk.

    Figures that do not apply are null. So are those that cannot be had; a line says why. Exchanges nothing with others.
    """
    state, stage, engine, device = run.state, run.stage, run.engine, run.world.device
    counts = count_parameters(stage.config.model, stage.config.linear)
    stages = [*state.grown, state.this_stage(stage.config.model.n_layers)]
    figures: dict[str, Any] = {
        "step": state.step,
        "error": reason(error) if error else None,
        "tokens_seen": state.tokens_seen,
        "train_seconds": state.train_seconds,
        # A model grown offline brings the tokens of another run along, as it does their seconds.
        "tokens_per_second": lambda: (
            state.tokens_seen / state.train_seconds if clock.empty else clock.tokens_per_second()
        ),
        "val_loss": _finite(evaluation.loss) if evaluation else None,
        "bits_per_byte": _finite(evaluation.bits_per_byte) if evaluation else None,
        "sources": lambda: _sources(run, evaluation),
        "parameters": counts["total"],
        "trainable_parameters": counts["trainable"],
        "flops": state.flops,
        "flops_dense_equivalent": state.flops_dense_equivalent,
        "peak_memory_bytes": lambda: peak_bytes(device),
        "peak_reserved_bytes": lambda: peak_reserved_bytes(device),
        "peak_resident_bytes": peak_resident_bytes,
        "planned_memory_bytes": lambda: planned_bytes(stage, state, run.world),
        "growth_stages": len(stages),
        "growths": len(state.grown),
        "stages": stages,
        "origin": state.origin or None,
        "skipped_steps": state.skipped_steps,
        "skips": state.skips,
        "spikes": state.spikes,
        "rewinds": state.rewinds,
        "low_rank_matrices": engine.low_rank_matrices,
        "reduced_bytes_per_step": engine.reduced_bytes,
        "full_gradient_bytes": engine.full_gradient_bytes,
        "dtype": stage.config.train.dtype,
        "versions": versions,
        "device": lambda: device_name(device),
    }
    summary: dict[str, Any] = {}
    for key, figure in figures.items():
        try:
            summary[key] = figure() if callable(figure) else figure
        except Exception as unknown:
            summary[key] = None
            run.console.say(f"summary.json: {key} is not known ({reason(unknown)})")
    try:
        replace_text(run.dir / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    except OSError as full:
        raise RunFailed(f"{run.dir}/summary.json cannot be written ({full.strerror}); the checkpoint is") from None


def _sources(run: Run, evaluation: Evaluation | None) -> dict[str, dict[str, float | None]] | None:
    """Tokens, epochs and held-out figures of each corpus of a mixture; None without one."""
    found: dict[str, dict[str, float | None]] = {}
    for name, source in run.dataset.sources.items():
        seen = run.state.sources.get(name, {"samples": 0, "tokens": 0})
        held_out = evaluation.sources[name] if evaluation else None
        found[name] = {
            "tokens": seen["tokens"],
            "epochs": seen["samples"] / source.n_samples,
            "val_loss": _finite(held_out.loss) if held_out else None,
            "bits_per_byte": _finite(held_out.bits_per_byte) if held_out else None,
        }
    return found or None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def summary_is_current(run_dir: Path, step: int) -> bool:
    """Whether `summary.json` is of `step` and complete."""
    try:
        summary = json.loads(read_regular(run_dir / "summary.json"))
        return summary["step"] == step and summary["val_loss"] is not None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
