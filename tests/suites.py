"""A tiny suite for the tests of `compare`, and a stand-in for `train` that takes a moment."""

from pathlib import Path

SUITE = """
[suite]
dir = "{folder}/suite"
seeds = {seeds}
baseline = "dense + adamw"
equal = {equal}
rates = 2
more_seeds = {more}
[base.model]
dim = 32
n_layers = 2
n_heads = 2
ffn_dim = 53
vocab_size = 320
max_seq_len = 32
[base.schedule]
name = "cosine"
total_steps = {steps}
[base.train]
micro_batch_size = 2
global_batch_size = 4
seq_len = 16
dtype = "fp32"
[base.data]
path = "{data}"
[base.checkpoint]
every = 2
[base.eval]
every = 0
[base.metrics]
every = 1
tensorboard = false
[linears.dense]
name = "dense"
[linears.thin]
name = "low_rank"
rank = 8
[optimizers.adamw]
name = "adamw"
betas = [0.9, 0.95]
[[methods]]
linear = ["dense", "thin"]
optimizer = ["adamw"]
rates = {rates}
"""


def write_suite(
    folder: Path,
    data: Path | str = "nowhere",
    steps: int = 100,
    seeds: str = "[0, 1]",
    more: str = "[]",
    equal: str = '["tokens", "flops"]',
    rates: str = "[1e-3, 2e-3]",
    extra: str = "",
) -> Path:
    """The file `suite.toml` in `folder`, of a suite in `folder / "suite"`."""
    path = folder / "suite.toml"
    text = SUITE.format(folder=folder, data=data, steps=steps, seeds=seeds, more=more, equal=equal, rates=rates)
    path.write_text(text + extra)
    return path


STAND_IN = """
import json, math, pathlib, signal, sys, time, tomllib
config = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())
run, steps = pathlib.Path(config["run"]["dir"]), config["schedule"]["total_steps"]
lr, seed, thin = config["optimizer"]["lr"], config["run"]["seed"], config["linear"]["name"] == "low_rank"
resolved = pathlib.Path(sys.argv[1]).read_text().replace('dtype = "auto"', 'dtype = "bf16"')
(run / "resolved.toml").write_text(resolved)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with open(run.parents[2] / "began", "a") as file:
    file.write(f"{run.parent.name}/{run.name}\\n")
if (run.parents[2] / "wait").exists():
    time.sleep(60)
if lr == 0.25:
    print("sparlow train: the disk is full")
    sys.exit(1)
error = "10 updates in a row were skipped (guard.max_consecutive_skips); lower optimizer.lr" if lr == 0.5 else None
loss = 3 + abs(math.log(lr / 1e-3)) + 0.01 * seed + 0.015 * thin - 1e-4 * steps
flops = (50 if thin else 100) * steps
records = [{"step": n, "train/loss": 9 - n / steps, "train/tokens_seen": n} for n in range(1, steps + 1)]
(run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\\n" for record in records))
summary = {"step": steps if not error else 3, "error": error, "val_loss": loss, "bits_per_byte": loss / 2}
summary |= {"flops": flops, "stages": [{"flops": flops}], "tokens_seen": 64 * steps, "tokens_per_second": 1e3}
(run / "summary.json").write_text(json.dumps(summary))
sys.exit(1 if error else 0)
"""
"""Takes the place of `train`: a loss that is least at a rate of 1e-3, half the FLOPs for a low rank; 0.25 fails, 0.5
diverges."""
