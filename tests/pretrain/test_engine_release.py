"""A closed engine leaves nothing behind, so that a process can build another one."""

import pytest
import torch
from processes import run_world
from rebuilding import check
from support import ROOT

from pretrain.machine import distributed

OFFLOAD = "--parallel.offload=optimizer"
GALORE = ["--linear.name=dense", "--optimizer.name=galore_adamw", "--optimizer.rank=8"]
ENGINES = {
    f"stage{stage}-{dtype}": [f"--parallel.zero_stage={stage}", f"--train.dtype={dtype}"]
    for stage in (0, 1, 2, 3)
    for dtype in ("fp32", "bf16")
} | {
    "galore-fp32": [*GALORE, "--train.dtype=fp32"],
    "galore-bf16": [*GALORE, "--train.dtype=bf16", "--optimizer.weights=bf16_stochastic"],
    "galore-per-layer": [
        *GALORE,
        "--optimizer.update=per_layer",
        "--train.grad_clip=0.0",
        "--train.global_batch_size=2",
    ],
    "adamw8bit-per-layer": [
        "--optimizer.name=adamw8bit",
        "--optimizer.update=per_layer",
        "--train.grad_clip=0.0",
        "--train.global_batch_size=2",
    ],
    "q_galore": [*GALORE[:1], "--optimizer.name=q_galore", *GALORE[2:], "--train.dtype=bf16"],
    "stage1-fp32-offload": ["--parallel.zero_stage=1", "--train.dtype=fp32", OFFLOAD],
    "stage2-bf16-offload": ["--parallel.zero_stage=2", "--train.dtype=bf16", OFFLOAD],
    "stage3-bf16-offload": ["--parallel.zero_stage=3", "--train.dtype=bf16", OFFLOAD],
    "stage3-recompute": ["--parallel.zero_stage=3", "--train.checkpoint_every_layers=1"],
}


QUICK = ("stage0-fp32", "stage1-bf16", "stage2-bf16-offload", "stage3-fp32", "galore-bf16", "q_galore")
"""What the others differ from in dtype, stage or hooks."""


@pytest.mark.parametrize(
    "engine", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ENGINES]
)
def test_nothing_outlives_its_engine(tiny, engine):
    check(tiny, ENGINES[engine], distributed.start())
    assert torch.nn.functional.linear.__name__ == "linear"


@pytest.mark.slow
def test_nor_does_it_on_two_processes(tiny):
    kinds = [",".join(ENGINES[engine]) for engine in ("stage0-fp32", "stage1-bf16", "stage2-fp32", "stage3-fp32")]
    kinds += [",".join(ENGINES[engine]) for engine in ("stage2-bf16-offload", "stage3-bf16-offload")]
    kinds += [",".join(ENGINES["stage3-bf16"]), ",".join(ENGINES["galore-fp32"])]
    run_world(2, str(ROOT / "tests" / "rebuilding.py"), str(tiny), *kinds)
