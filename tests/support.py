"""What several tests of runs share: starting one here, and comparing what it left."""

import atexit
import functools
import gc
import json
import signal
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.loop.origin import Start
    from pretrain.optim.config import OwnConfig

ROOT = Path(__file__).parents[1]


TINY = """
[run]
dir = "{run}"
[model]
dim = 32
n_layers = 2
n_heads = 2
ffn_dim = 53
vocab_size = 320
max_seq_len = 32
[linear]
name = "sparse_low_rank"
rank = 8
alpha = 8.0
density = 0.1
[optimizer]
name = "adamw"
lr = 1e-3
[schedule]
name = "cosine"
total_steps = 60
[train]
micro_batch_size = 2
global_batch_size = 8
seq_len = 16
dtype = "fp32"
[data]
path = "{data}"
[checkpoint]
every = 1000
[eval]
every = 0
tokens = 512
[metrics]
every = 1
tensorboard = false
"""


def check_optimizer(config: "OwnConfig") -> None:
    """UserError when no run could have this optimizer."""
    from pydantic import ValidationError

    from model.errors import UserError
    from pretrain.config.schema import Config

    tables = tomllib.loads(TINY.format(run="run", data="data"))
    tables["model"]["dim"] = tables["model"]["ffn_dim"] = 128
    optimizer = {"name": config.name, **config.model_dump(exclude_unset=True)}
    try:
        Config.model_validate(tables | {"linear": {"name": "dense"}, "optimizer": optimizer})
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"]) from error


def write_tiny(folder: Path, corpus: Path) -> Path:
    """The configuration file `tiny.toml` in `folder`, of a run in `folder / "run"` on `corpus`."""
    path = folder / "tiny.toml"
    path.write_text(TINY.format(run=folder / "run", data=corpus))
    return path


@functools.cache
def freeze_imports() -> None:
    """Leave what there is by now out of all later collections: each run makes some, half the cost of a tiny one."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or extension modules complain of leaks


def train_here(path: Path, *overrides: str, start: "Start | None" = None) -> int:
    """`sparlow train` in this process, `start` being what --from names; UserError and RunFailed come through."""
    from pretrain.config import load_config
    from pretrain.loop.train import train
    from pretrain.machine import distributed, stop

    freeze_imports()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    world = distributed.start()  # and it stays: DeepSpeed remembers the first process group of a process
    try:
        return train(load_config(path, overrides), world, start)
    finally:
        stop.listen()  # forgets a signal that has come: the tests that follow were not told to stop
        for number, handler in handlers.items():
            signal.signal(number, handler)


def edit_checkpoint(folder: Path, /, *, files: dict[str, bytes] | None = None, **changes: object) -> None:
    """Put `files` in the place of those of a checkpoint, and `changes` into its manifest, which verifies after it."""
    from pretrain.checkpoint.manifest import seal
    from pretrain.checkpoint.save import write_hashed

    fields = json.loads((folder / "manifest.json").read_text()) | changes
    entries = {entry["name"]: entry for entry in fields["files"]}
    entries |= {name: vars(write_hashed(folder / name, data)) for name, data in (files or {}).items()}
    (folder / "manifest.json").write_bytes(seal(fields | {"files": list(entries.values())}))


def tensor_hashes(run: Path, step: int) -> dict[str, str]:
    """sha256 of every tensor file of a checkpoint."""
    manifest = json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())
    return {f["name"]: f["sha256"] for f in manifest["files"] if f["name"].endswith(".safetensors")}


def logged(run: Path, key: str = "train/loss") -> dict[int, str]:
    """`key` of every logged step, as the text in metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_float=str) for line in lines]
    assert len({record["step"] for record in records}) == len(records), "a step is logged twice"
    return {record["step"]: record[key] for record in records if key in record}
