"""The plan against real tensors: every live one of two steps of the real engine, on a CPU at a small size.

At ZeRO stage 0, where the optimizer is Sparlow's or PyTorch's. What ZeRO does is in test_zero_truth.py.
"""

import pytest
from zero_steps import measured, planned

from pretrain.machine import distributed

TOTAL = 0.01
"""Tolerance of a phase's worst moment."""

STAGE = ["--parallel.zero_stage=0"]

SPARSE = ["--linear.name=sparse_low_rank", "--linear.rank=32", "--linear.density=0.03"]

PER_LAYER = ["--optimizer.update=per_layer", "--train.grad_clip=0.0", "--train.global_batch_size=1"]


def optimizer(name: str, *overrides: str) -> list[str]:
    return [f"--optimizer.name={name}", *(f"--optimizer.{override}" for override in overrides)]


KINDS = {
    "adamw": [],
    "bf16": ["--train.dtype=bf16", "--optimizer.weights=bf16"],
    "masters": ["--train.dtype=bf16"],
    "recomputed": ["--train.checkpoint_every_layers=2"],
    "offloaded": ["--train.checkpoint_every_layers=1", "--train.offload_activations=true"],
    "offloaded, some": ["--train.checkpoint_every_layers=3", "--train.offload_activations=true", *SPARSE],
    "attention in blocks": ["--train.seq_len=256", "--model.max_seq_len=256", "--model.n_kv_heads=2"],
    "grouped and tied": ["--model.n_kv_heads=2", "--model.tie_embeddings=true"],
    "low rank": ["--linear.name=low_rank", "--linear.rank=32"],
    "sparse": SPARSE,
    "sparse, ranks of their own": [*SPARSE, "--linear.ranks.layers.2.*=64", "--linear.ranks.*.down_proj=7"],
    "sparse, kept": [*SPARSE, "--kernels.keep_weight=step", "--kernels.sum_gradients=dense"],
    "support alone": ["--linear.name=sparse", "--linear.density=0.3"],
    "cola": ["--linear.name=cola", "--linear.rank=32"],
    "lora": ["--linear.name=lora", "--linear.rank=32"],
    "lora_fa": ["--linear.name=lora_fa", "--linear.rank=32"],
    "relora": ["--linear.name=relora", "--linear.rank=32", "--linear.merge_every=1"],
    "relora, 8 bits": [*optimizer("adamw8bit"), "--linear.name=relora", "--linear.rank=32", "--linear.merge_every=1"],
    "poet": ["--linear.name=poet", "--linear.block=16", "--linear.merge_every=1"],
    "sst": ["--linear.name=sst", "--linear.rank=32", "--linear.resample_every=1"],
    "8 bits": optimizer("adamw8bit"),
    "8 bits, per layer": [*optimizer("adamw8bit", "weights=bf16_stochastic"), "--train.dtype=bf16", *PER_LAYER],
    "galore": optimizer("galore_adamw", "rank=64"),
    "galore, ranks of their own": optimizer("galore_adamw", "rank=64", "ranks.layers.1.*=16"),
    "q_galore": [*optimizer("q_galore", "rank=64"), "--train.dtype=bf16"],
    "q_galore, per layer": [*optimizer("q_galore", "rank=64"), "--train.dtype=bf16", *PER_LAYER],
    "fira": optimizer("fira", "rank=64"),
    "apollo": optimizer("apollo", "rank=64"),
    "muon": optimizer("muon"),
    "normuon": optimizer("normuon", "moments=8bit"),
    "scale": optimizer("scale", "moments=8bit"),
    "scale, per layer": [*optimizer("scale", "weights=int8"), "--train.dtype=bf16", *PER_LAYER],
    "int8 products": ["--train.products=int8", "--train.dtype=bf16"],
    "int8 products, all three": ["--train.products=int8", "--train.eight_bit_weight_gradients=true"],
    "int8 products, sparse": [*SPARSE, "--train.products=int8"],
    "int8 products, sparse, kept": [*SPARSE, "--train.products=int8", "--kernels.keep_weight=step"],
    "int8 products of codes": [
        *optimizer("q_galore", "rank=64"),
        "--train.dtype=bf16",
        "--train.products=int8",
        *PER_LAYER,
        "--train.checkpoint_every_layers=1",
    ],
    "fp8 products": ["--train.products=fp8", "--train.checkpoint_every_layers=2"],
    "sinkgd, per layer": [*optimizer("sinkgd", "weights=int8"), "--train.dtype=bf16", *PER_LAYER],
}


@pytest.mark.parametrize("kind", KINDS)
def test_plan(kind: str) -> None:
    overrides = [*STAGE, "--train.dtype=fp32", *KINDS[kind]]
    plan, real = planned(overrides, 1), measured(overrides, distributed.start())
    for phase, moment in plan.phases.items():
        assert moment.total == pytest.approx(real[phase][0], rel=TOTAL), phase
