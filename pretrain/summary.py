"""summary.json: what a run came to, for other programs."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from model.counts import count_parameters
from pretrain.config.schema import Config
from pretrain.distributed import World
from pretrain.evaluate import Evaluation
from pretrain.hardware import device_name
from pretrain.memory import peak_bytes
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
    config: Config,
    state: TrainState,
    clock: StepClock,
    evaluation: Evaluation | None,
    reduced_bytes_per_step: int,
    world: World,
) -> None:
    """Rewrite `summary.json` at the end of a `train`; figures that do not apply are null."""
    counts = count_parameters(config.model, config.linear)
    tokens_per_step = config.train.global_batch_size * config.train.seq_len
    summary: dict[str, Any] = {
        "step": state.step,
        "tokens_seen": state.tokens_seen,
        "train_seconds": state.train_seconds,
        "tokens_per_second": tokens_per_step / clock.steady_seconds(),
        "val_loss": evaluation.loss if evaluation else None,
        "bits_per_byte": evaluation.bits_per_byte if evaluation else None,
        "parameters": counts["total"],
        "trainable_parameters": counts["trainable"],
        "flops": state.flops,
        "peak_memory_bytes": peak_bytes(world.device),
        "planned_memory_bytes": None,
        "growth_stages": state.growth_stage,
        "skipped_steps": state.skipped_steps,
        "low_rank_matrices": 0,
        "reduced_bytes_per_step": reduced_bytes_per_step,
        "full_gradient_bytes": counts["trainable"] * (2 if config.optimizer.weights == "bf16" else 4),
        "dtype": config.train.dtype,
        "versions": versions(),
        "device": device_name(world.device),
    }
    temporary = run_dir / "summary.json.tmp"
    temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, run_dir / "summary.json")
