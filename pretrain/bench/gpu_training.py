"""Parts of the check on a GPU that train: the kernels against their reference, and a resume against a straight run."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from pretrain.bench.part import ROOT, Check, Failed, Skipped

NEEDED = ("deepspeed", "sentencepiece", "safetensors", "pydantic", "rich", "numpy")
CONFIG_60M = "configs/llama_60m_sltrain.toml"
BATCH = ["--train.micro_batch_size=32", "--train.global_batch_size=32", "--train.seq_len=256"]
QUIET = ["--metrics.tensorboard=false", "--eval.every=0", "--eval.tokens=65536", "--checkpoint.keep=1"]
LOSS_TOLERANCE = 0.02
"""Relative difference allowed between the losses with and without kernels, which round differently."""
RESUME_TOLERANCE = 1e-3


def parity(check: Check) -> dict[str, Any]:
    """The 60M model with kernels, without, and with dense linears: losses, tokens/s and peak memory."""
    options = [*BATCH, f"--train.max_steps={check.steps}", "--metrics.every=1"]
    small = [text for text in check.small if not text.startswith("--linear.")]
    runs = {
        "kernels": _train(check, CONFIG_60M, "kernels", *options, *check.small),
        "reference": _train(check, CONFIG_60M, "reference", *options, *check.small, kernels="torch"),
        "dense": _train(check, CONFIG_60M, "dense", *options, *small, "--linear.name=dense"),
    }
    figures = {name: _figures(run, check.steps) for name, run in runs.items()}
    difference = abs(figures["kernels"]["loss"] - figures["reference"]["loss"])
    found: dict[str, Any] = {"steps": check.steps, "loss_difference": difference, **figures}
    if not difference < LOSS_TOLERANCE:
        raise Failed(f"with kernels the loss after {check.steps} steps is off by {difference:.4f}", **found)
    return found


def resume(check: Check) -> dict[str, Any]:
    """configs/quickstart.toml straight, and with a stop and a resume in the middle."""
    config = "configs/quickstart.toml"
    options = ["--train.deterministic=true", "--metrics.every=1", *check.small]
    half, whole = f"--train.max_steps={check.steps // 2}", f"--train.max_steps={check.steps}"
    straight = _train(check, config, "straight", *options, whole)
    _train(check, config, "resumed", *options, half)
    resumed = _train(check, config, "resumed", *options, whole)
    first, again = losses(straight), losses(resumed)
    largest = max(abs(first[step] - again[step]) for step in first)
    found = {
        "steps": check.steps,
        "largest_loss_difference": largest,
        "bit_exact": _tensors(straight, check.steps) == _tensors(resumed, check.steps),
        **_figures(straight, check.steps),
    }
    if not largest < RESUME_TOLERANCE:
        raise Failed(f"a resumed run's loss is off by {largest:.2e}", **found)
    return found


def background(check: Check) -> dict[str, Any]:
    """Saves in the background, of tensors that are overwritten meanwhile, and others that training waits for."""
    steps = max(2, check.steps // 10)
    options = ["--train.deterministic=true", "--checkpoint.every=1", f"--checkpoint.keep={steps}"]
    options += [f"--train.max_steps={steps}", "--metrics.every=1", *check.small]
    runs = {
        name: _train(check, "configs/quickstart.toml", f"saves {name}", f"--checkpoint.background={value}", *options)
        for name, value in (("background", "true"), ("foreground", "false"))
    }
    there, here = ({step: _tensors(run, step) for step in range(1, steps + 1)} for run in runs.values())
    differ = [step for step in there if there[step] != here[step]]
    found = {"steps": steps, "differ": differ, **{f"loss_{name}": losses(run)[steps] for name, run in runs.items()}}
    if differ:
        raise Failed(
            f"checkpoints of {len(differ)} of {steps} steps differ when they are saved in the background", **found
        )
    return found


def corpus(check: Check) -> Path:
    """The standard library's sources as tokens, made once; Skipped when a package of training is absent."""
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise Skipped(f"training needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed")
    if check.data is None:
        path = check.work / "data"
        prepare = ["-m", "pretrain", "prepare", "--source", "stdlib", "--vocab-size", "2048", "--out", str(path)]
        check.python(*prepare, limit=90, HF_HUB_OFFLINE="1").require("prepare")
        check.data = path
    return check.data


def _train(check: Check, config: str, name: str, *overrides: str, kernels: str = "auto") -> Path:
    """Train to the end; the run's folder."""
    run = check.work / name
    where = [f"--run.dir={run}", f"--data.path={corpus(check)}"]
    environment = {"SPARLOW_KERNELS": kernels, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1"}
    check.python(
        "-m", "pretrain", "train", str(ROOT / config), *where, *QUIET, *overrides, limit=120, **environment
    ).require(f"training ({name})")
    return run


def _figures(run: Path, steps: int) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text())
    keys = "tokens_per_second peak_memory_bytes peak_resident_bytes val_loss dtype skipped_steps parameters"
    return {"loss": losses(run)[steps], **{key: summary[key] for key in keys.split()}}


def losses(run: Path) -> dict[int, float]:
    """Losses by step; one that is not finite is logged as null."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: math.nan if line["train/loss"] is None else line["train/loss"] for line in lines}


def _tensors(run: Path, step: int) -> dict[str, str]:
    """sha256 of every tensor file of the checkpoint of `step`."""
    manifest = json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())
    return {f["name"]: f["sha256"] for f in manifest["files"] if f["name"].endswith(".safetensors")}
