"""Optimizer state in host memory: the same run, to be paused and gone on with on either side, at every ZeRO stage."""

from pathlib import Path

import pytest
import torch
from processes import train_world
from support import logged, tensor_hashes, train_here, write_tiny

from model.errors import UserError
from pretrain.config import load_config
from pretrain.data.dataset import Batch
from pretrain.engine.build import build_engine
from pretrain.loop.build import build
from pretrain.machine import distributed
from pretrain.memory_plan.offload import Offloaded

OFFLOAD = "--parallel.offload=optimizer"
KINDS = [(stage, dtype) for stage in (1, 2, 3) for dtype in ("fp32", "bf16")]
QUICK = ((2, "bf16"), (3, "fp32"))
"""Of the ways in which DeepSpeed sums gradients: on the GPU, in host memory."""
TWO = ((1, "bf16"), *QUICK)
STEPS = 4


def options(stage: int, dtype: str, *more: str) -> list[str]:
    """Gradients are clipped, weights decay (so there are two groups of parameters), and steps take four micro-steps."""
    kind = [f"--parallel.zero_stage={stage}", f"--train.dtype={dtype}", "--optimizer.weight_decay=0.1"]
    return [*kind, "--train.grad_clip=0.1", f"--train.max_steps={STEPS}", *more]


def apart(one: Path, other: Path) -> float:
    """Largest difference of two runs' losses and of their gradients' norms."""
    pairs = [(logged(one, key), logged(other, key)) for key in ("train/loss", "train/grad_norm")]
    assert all(list(a) == list(b) == list(range(1, STEPS + 1)) for a, b in pairs)
    return max(abs(float(a[step]) - float(b[step])) for a, b in pairs for step in a)


@pytest.mark.parametrize(
    ("stage", "dtype"), [kind if kind in QUICK else pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_offload_changes_no_figure_and_resumes_exactly(tiny, tmp_path, stage, dtype):
    runs = {name: tmp_path / name for name in ("plain", "offloaded", "paused", "changed")}
    train_here(tiny, *options(stage, dtype, f"--run.dir={runs['plain']}"))
    train_here(tiny, *options(stage, dtype, OFFLOAD, f"--run.dir={runs['offloaded']}"))
    assert apart(runs["plain"], runs["offloaded"]) < 1e-6
    for last in (2, STEPS):
        train_here(tiny, *options(stage, dtype, OFFLOAD, f"--run.dir={runs['paused']}", f"--train.max_steps={last}"))
    assert tensor_hashes(runs["paused"], STEPS) == tensor_hashes(runs["offloaded"], STEPS)
    assert apart(runs["paused"], runs["offloaded"]) == 0
    for last, where in ((1, "optimizer"), (2, "none"), (STEPS, "optimizer")):
        here = [f"--parallel.offload={where}", f"--run.dir={runs['changed']}", f"--train.max_steps={last}"]
        train_here(tiny, *options(stage, dtype, *here))
    assert apart(runs["changed"], runs["offloaded"]) < 1e-6


@pytest.fixture(scope="module")
def two(corpus, tmp_path_factory) -> Path:
    """Runs of two processes: `<stage>-<dtype>`, paused half-way, with offload."""
    folder = tmp_path_factory.mktemp("offload")
    runs = [options(*kind, OFFLOAD, f"--run.dir={folder}/{kind[0]}-{kind[1]}") for kind in TWO]
    train_world(
        2, write_tiny(folder, corpus), [[*run, *more] for run in runs for more in (["--train.max_steps=2"], [])]
    )
    return folder


@pytest.mark.parametrize(("stage", "dtype"), TWO)
def test_two_processes_equal_one(tiny, tmp_path, two, stage, dtype):
    train_here(tiny, *options(stage, dtype, f"--run.dir={tmp_path / 'one'}"))
    assert apart(tmp_path / "one", two / f"{stage}-{dtype}") < (1e-5 if dtype == "fp32" else 1e-2)  # as without offload


@pytest.mark.parametrize(("stage", "dtype"), KINDS)
@pytest.mark.parametrize("micro_steps", [1, 4])
@pytest.mark.fault("F19")
def test_a_gradient_that_is_not_finite_skips_one_update(tiny, tmp_path, monkeypatch, stage, dtype, micro_steps):
    visits = iter(range(1, 1000))
    monkeypatch.setattr("pretrain.engine.base.fault_flag", lambda point: next(visits) == 2 * micro_steps)
    kind = options(stage, dtype, OFFLOAD, "--checkpoint.every=1", "--checkpoint.keep=9", "--train.max_steps=4")
    train_here(tiny, *kind, f"--train.global_batch_size={2 * micro_steps}")
    before, after, later = (tensor_hashes(tmp_path / "run", step) for step in (1, 2, 3))
    assert before == after != later
    assert list(logged(tmp_path / "run", "train/skipped_steps").values()) == [0, 1, 1, 1]


@pytest.mark.parametrize(("stage", "dtype"), KINDS)
@pytest.mark.parametrize("micro_steps", [1, 2])
def test_what_is_in_host_memory_is_what_is_planned(tiny, stage, dtype, micro_steps):
    """DeepSpeed's own buffers, by name: what it keeps on the CPU when the model is on a GPU."""
    config = load_config(tiny, options(stage, dtype, OFFLOAD))
    world = distributed.start()
    engine = build_engine(build(config, world.device), config, world, micro_steps)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    engine.begin(1e-3)
    for _ in range(micro_steps):
        engine.micro_step(Batch(tokens, tokens), micro_steps * 32)
    assert engine.update().applied
    zero, moments = engine.deepspeed.optimizer, engine.deepspeed.basic_optimizer.state
    flat = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
    measured = {
        "masters": sum(t.nbytes for t in flat),
        "moments": sum(state[key].nbytes for state in moments.values() for key in ("exp_avg", "exp_avg_sq")),
        "accumulators": sum(t.grad.nbytes for t in flat),
    }
    if stage == 3:
        measured["accumulators"] += zero.grad_partitions_flat_buffer.nbytes
    else:
        measured["accumulators"] += sum(t.nbytes for t in zero.accumulated_grads_in_cpu.values())
        copies = zero.param_buffer_of_bit16_for_cpu_offload_groups
        measured["reduction"] = sum(t.nbytes for t in (*copies, zero.temp_grad_buffer_for_cpu_offload))
    numels = [p.numel() for p in build(config, torch.device("cpu")).parameters()]
    stored = 4 if dtype == "fp32" else 2
    planned = Offloaded(stage, numels, stored, 1, accumulates=micro_steps > 1, cuda=False).moved
    assert planned == pytest.approx(measured, rel=1e-3)  # it pads
    engine.close()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], r"parallel\.offload = \"optimizer\" needs ZeRO: set parallel\.zero_stage = 1, 2 or 3"),
        (
            ["--linear.name=dense", "--optimizer.name=galore_adamw", "--optimizer.rank=8"],
            r"parallel\.offload = \"optimizer\" does not work with optimizer\.name = \"galore_adamw\".*\"adamw\"",
        ),
    ],
)
def test_where_there_is_no_zero_it_is_refused(tiny, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        load_config(tiny, [OFFLOAD, *overrides])
    assert str(error.value).count('parallel.offload = "optimizer"') == 1
