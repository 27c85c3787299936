"""Runs that grow: tiny ones to start, and everything that they leave, to compare."""

import json
import shutil
from pathlib import Path

from support import tensor_hashes, write_tiny

GROWS, LAST = 4, 12
GROWTH = [
    f"--schedule.total_steps={LAST}",
    "--train.global_batch_size=4",
    "--growth.enabled=true",
    "--growth.factor=2",
    f"--growth.at={GROWS * 4 * 16}",
]
"""12 steps of 64 tokens: 1 layer, and after step 4 two."""

DENSE = ["--linear.name=dense"]
GALORE = [*DENSE, "--optimizer.name=galore_adamw", "--optimizer.rank=8", "--optimizer.update_proj_gap=5"]
GALORE8 = [text.replace("galore_adamw", "galore_adamw8bit") for text in GALORE]
TIMES = ("perf/", "mem/")


def grown_run(config: Path, folder: Path, *options: str, **settings: int) -> Path:
    """Train with growth to the end in `folder`, all of it or to max_steps, with no checkpoint ever deleted."""
    from support import train_here

    overrides = [f"--{key.replace('__', '.')}={value}" for key, value in settings.items()]
    train_here(config, *GROWTH, "--checkpoint.keep=99", f"--run.dir={folder}", *options, *overrides)
    return folder


def checkpoint(run: Path, step: int, grown: bool = False) -> Path:
    return run / "checkpoints" / f"step-{step:08d}{'-grown' if grown else ''}"


def names(run: Path) -> list[str]:
    """Of the checkpoints, and of whatever else lies among them."""
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.name not in ("latest", "lock"))


def state(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text())


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def tensors(folder: Path) -> dict:
    """Every tensor of a checkpoint, by name."""
    from pretrain.checkpoint.read import Checkpoint

    opened = Checkpoint(folder)
    return {name: opened.read(name) for name in opened.names()}


def records(run: Path) -> list[dict]:
    """metrics.jsonl without times and memory; numbers as their text."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_float=str) for line in lines]
    return [{key: value for key, value in record.items() if not key.startswith(TIMES)} for record in parsed]


def ending(run: Path, step: int = LAST) -> tuple:
    """What two equal runs have in common: tensors, numbers, metrics and what the stages came to."""
    numbers = state(checkpoint(run, step))
    numbers.pop("train_seconds")
    told = summary(run)
    return tensor_hashes(run, step), numbers, records(run), told["stages"], told["flops"], told["val_loss"]


def rewound(run: Path, folder: Path, newest: str) -> Path:
    """A copy of `run` in `folder` as it was when `newest` was its newest checkpoint; metrics as they are now."""
    shutil.copytree(run, folder)
    (folder / "summary.json").unlink()
    for name in names(folder):
        if name > newest:
            shutil.rmtree(folder / "checkpoints" / name)
    return folder


def tiny_config(folder: Path, corpus: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_tiny(folder, corpus)
