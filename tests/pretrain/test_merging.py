"""Merges between updates: when, what becomes of moments, and that a run goes on across them as if it had not paused."""

import re

import pytest
import torch
from support import logged, tensor_hashes, train_here

from model.errors import UserError
from model.linear.merging import MergingLinear
from pretrain.config import load_config
from pretrain.data.dataset import Batch
from pretrain.engine.build import build_engine
from pretrain.loop.build import build
from pretrain.machine import distributed

RELORA = ["--linear.name=relora", "--linear.rank=8"]
POET = ["--linear.name=poet", "--linear.block=16", "--model.ffn_dim=48"]
SST = ["--linear.name=sst", "--linear.rank=8", "--linear.resample_every=3"]
EIGHT_BITS = ["--optimizer.name=adamw8bit", "--model.dim=64", "--linear.rank=64", "--model.ffn_dim=64"]
"""Factors with as many elements as it takes to be kept in 8 bits."""
OPTIMIZERS = {"adamw": [], "adamw8bit": EIGHT_BITS}


def engine_of(tiny, *options, micro_steps=2):
    config = load_config(tiny, options)
    world = distributed.start()
    return build_engine(build(config, world.device), config, world, micro_steps)


def step(engine, seed, micro_steps=2, **limit):
    random = torch.Generator().manual_seed(seed)
    engine.begin(1e-2, seed)
    for _ in range(micro_steps):
        tokens, targets = (torch.randint(320, (2, 16), generator=random) for _ in range(2))
        engine.micro_step(Batch(tokens, targets), micro_steps * 2 * 16)
    return engine.update(**limit)


def whole(engine):
    return {name: read().detach().clone() for name, _, read in engine.whole_tensors()}


def maps(engine):
    return [m.dense_weight().clone() for m in engine.model.modules() if isinstance(m, MergingLinear)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_merge_follows_the_update_that_is_due(tiny, optimizer):
    options = [*RELORA, *OPTIMIZERS[optimizer], "--linear.reset=zero"]
    never, merging = (engine_of(tiny, *options, f"--linear.merge_every={every}") for every in (1000, 2))
    for seed in range(2):
        before = whole(merging)
        assert all(step(engine, seed).applied for engine in (never, merging))
        after = whole(merging)
        frozen = [name for name in after if name.endswith("_proj.weight")]
        assert len(frozen) == 14
        assert all(torch.equal(after[name], before[name]) == (seed == 0) for name in frozen)
    for name, tensor in after.items():
        if name.endswith("_proj.B") or re.search(r"_proj\.[AB]\.exp_avg(_sq)?$", name):
            zero = torch.full_like(tensor, 127 if tensor.dtype == torch.uint8 and name.endswith("avg") else 0)
            assert torch.equal(tensor, zero), name
        elif not name.startswith("model.") and "_proj" not in name:
            assert tensor.any(), name
    assert {t.dtype for n, t in after.items() if n.endswith("q_proj.A.exp_avg")} == {
        torch.uint8 if optimizer == "adamw8bit" else torch.float32
    }
    for one, other in zip(maps(merging), maps(never), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for engine in (never, merging):
        step(engine, 2)
    assert all(tensor.any() for name, tensor in whole(merging).items() if name.endswith("_proj.B"))
    for engine in (never, merging):
        engine.close()


def test_a_step_that_is_skipped_is_no_update(tiny):
    engine = engine_of(tiny, *RELORA, "--linear.merge_every=2")
    step(engine, 0)
    before = whole(engine)
    assert not step(engine, 1, limit=-1).applied
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole(engine).items())
    step(engine, 1)
    assert not whole(engine)["model.layers.0.attention.q_proj.B"].any()
    engine.close()


def test_inside_of_the_backward_pass_as_after_it(tiny):
    options = [*RELORA, *EIGHT_BITS, "--linear.merge_every=2", "--train.grad_clip=0.0", "--train.global_batch_size=2"]
    found = []
    for update in ("step", "per_layer"):
        engine = engine_of(tiny, *options, f"--optimizer.update={update}", micro_steps=1)
        for seed in range(3):
            step(engine, seed, micro_steps=1)
        found.append(whole(engine))
        engine.close()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@pytest.mark.fault("F1")
@pytest.mark.parametrize(
    "options",
    [
        [*RELORA, "--linear.reset=random"],
        [*RELORA, *EIGHT_BITS],
        [*POET, "--train.dtype=bf16", "--optimizer.weights=bf16"],
        SST,
    ],
    ids=["relora", "relora, 8 bits", "poet, bf16", "sst"],
)
def test_a_run_that_pauses_around_a_merge_is_one_that_does_not(tiny, tmp_path, options):
    options = [*options, *(["--linear.merge_every=3"] if options is not SST else [])]
    straight, paused = tmp_path / "straight", tmp_path / "paused"
    train_here(tiny, *options, f"--run.dir={straight}", "--train.max_steps=7")
    for pause in (2, 3, 4, 7):
        train_here(tiny, *options, f"--run.dir={paused}", f"--train.max_steps={pause}")
    assert tensor_hashes(paused, 7) == tensor_hashes(straight, 7)
    assert logged(paused) == logged(straight)


def test_a_run_that_grows_goes_on_merging(tiny, tmp_path):
    growth = ["--growth.enabled=true", "--growth.factor=2", "--growth.at=0.5", "--schedule.total_steps=8"]
    options = [*RELORA, *growth, "--linear.merge_every=3", "--growth.optimizer=copy", "--growth.rank=4"]
    with pytest.raises(UserError, match=r"growth\.optimizer"):
        train_here(tiny, *options)
    train_here(tiny, *options[:-2], "--growth.rank=4")
    assert len(logged(tmp_path / "run")) == 8


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--parallel.zero_stage=1"], r'linear\.name = "relora" .*parallel\.zero_stage = 1; set it to 0'),
        (
            ["--optimizer.name=galore_adamw", '--optimizer.targets=["*.A"]'],
            r'linear\.name = "relora" .*"galore_adamw" does not follow; set "adamw"',
        ),
        ([*POET, "--model.ffn_dim=53"], r"linear\.block 16 does not divide .*divisor of 1$"),
        ([*POET, "--optimizer.name=adamw8bit", "--optimizer.factor_lr_ratio=2.0"], r'"poet", which has no factors'),
        ([*SST, "--optimizer.name=adamw8bit", "--optimizer.factor_lr_ratio=2.0"], r'"sst", which has no factors'),
        (
            [*POET, "--growth.enabled=true", "--growth.factor=2", "--growth.function_preserving=true"],
            r'linear\.name = "poet" would never move',
        ),
        ([*POET, "--growth.enabled=true", "--growth.factor=2", "--growth.rank=2"], r"growth\.rank has no effect"),
        (
            [*SST, "--growth.enabled=true", "--growth.factor=2", "--growth.rank=4"],
            r"growth: linear\.rank 4 cannot become 8; keep it",
        ),
        (["--linear.reset=zero", "--linear.reset_ratio=0.5"], r"linear\.reset_ratio has no effect"),
        (["--optimizer.name=q_galore", "--optimizer.weights=int8"], r'optimizer\.weights = "int8"|does not follow'),
        (
            ["--schedule.name=cosine_restarts", "--schedule.restart_every=7"],
            r"schedule\.restart_every 7 is no part of schedule\.total_steps 60",
        ),
        (
            ["--schedule.name=cosine_restarts", "--schedule.restart_every=60"],
            r"schedule\.restart_every 60 is no part of .* less",
        ),
        (
            ["--schedule.name=cosine_restarts", "--schedule.restart_every=5", "--schedule.restart_warmup_steps=2"],
            r"schedule\.warmup_fraction 0\.1 is 6 steps, more than schedule\.restart_every 5",
        ),
        (
            ["--schedule.name=cosine_restarts", "--schedule.restart_every=20"],
            r"schedule\.restart_warmup_steps 100 must be less",
        ),
        (
            [
                *("--schedule.name=cosine_restarts", "--schedule.restart_every=20", "--growth.enabled=true"),
                *("--schedule.restart_warmup_steps=2", "--growth.factor=2"),
            ],
            r'set growth\.schedule = "continue"',
        ),
    ],
)
def test_what_does_not_go_together(tiny, options, expected):
    named = any(option.startswith("--linear.name") for option in options)
    with pytest.raises(UserError, match=expected):
        load_config(tiny, options if named else [*RELORA, *options])
