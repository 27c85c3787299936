"""A step that is skipped changes nothing, in any engine: no tensor, no count, and nothing of what comes later."""

import math

import pytest
import torch

from model.errors import UserError
from pretrain.config import load_config
from pretrain.data.dataset import Batch
from pretrain.engine.build import build_engine
from pretrain.loop.build import build
from pretrain.machine import distributed
from pretrain.optim.rules import PRESETS

DENSE = ["--linear.name=dense"]
ZERO = {
    f"zero{stage}-{dtype}{more}": [f"--parallel.zero_stage={stage}", f"--train.dtype={dtype}", *options]
    for stage in range(4)
    for dtype in ("fp32", "bf16")
    for more, options in {"": [], "-offload": ["--parallel.offload=optimizer"]}.items()
    if stage or not more
}
# Every matrix is due in every step: what changes with a basis must not change either.
DUE = ["--optimizer.rank=4", "--optimizer.update_proj_gap=1", "--optimizer.refresh_stagger=false"]
MATRIX = {name: [*DENSE, f"--optimizer.name={name}"] for name in PRESETS}
OWN = {
    "adamw8bit": ["--optimizer.name=adamw8bit", "--model.dim=64"],
    "int8": [*MATRIX["q_galore"], "--optimizer.rank=4", "--optimizer.weights=int8"],
    "rotating": [*MATRIX["galore_adamw"], *DUE, "--optimizer.rotate_moments=true"],
    "adaptive": [*MATRIX["galore_adamw"], "--optimizer.rank=4", "--optimizer.refresh=adaptive"],
    "host": [*MATRIX["galore_adamw"], *DUE, "--optimizer.accumulators=host"],
}
QUICK = ("zero0-fp32", "zero1-bf16", "zero2-bf16-offload", "zero3-fp32", "adamw8bit", "int8", "rotating", "fira")
KINDS = ZERO | MATRIX | OWN


def engine_of(tiny, kind, *more):
    """An engine of two micro-steps."""
    options = [*KINDS[kind], "--train.grad_clip=0.1", "--optimizer.weight_decay=0.1", *more]
    for key in DUE if kind in MATRIX else ():  # what a rule does not know, its bases do not need
        try:
            load_config(tiny, [*options, key])
        except UserError:
            continue
        options.append(key)
    config = load_config(tiny, options)
    world = distributed.start()
    return build_engine(build(config, world.device), config, world, grad_accum_steps=1 if "per_layer" in more else 2)


def whole(engine):
    return {name: read().detach().clone() for name, _, read in engine.whole_tensors()}


def same(one, other):
    different = [name for name in one if not torch.equal(one[name], other[name])]
    return one.keys() == other.keys() and not different


def step(engine, seed, micro_steps=2, end="update", limit=math.inf):
    random = torch.Generator().manual_seed(seed)
    engine.begin(1e-2, seed)
    for _ in range(micro_steps):
        tokens, targets = (torch.randint(320, (2, 16), generator=random) for _ in range(2))
        engine.micro_step(Batch(tokens, targets), 2 * 2 * 16)
    return engine.drop() if end == "drop" else engine.update(limit)


def bad_element(engine):
    """One element of the gradient of one weight becomes infinite, once."""
    weight = dict(engine.model.named_parameters())["layers.1.ffn_norm.weight"]
    strikes = iter([True])

    def spoil(gradient):
        spoiled = gradient.clone()
        spoiled.view(-1)[0] = math.inf if next(strikes, False) else spoiled.view(-1)[0]
        return spoiled

    weight.register_hook(spoil)


@pytest.mark.fault("F19")
@pytest.mark.fault("F25")
@pytest.mark.fault("F38")
@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_a_skipped_step_leaves_no_trace(tiny, kind):
    """Dropped for its loss, too large for the limit, or with one element that is not finite; and the steps after it."""
    twin = engine_of(tiny, kind)
    expected = [step(twin, seed) for seed in range(4)]
    at_the_end = whole(twin)
    twin.close()
    engine = engine_of(tiny, kind)
    assert [step(engine, seed) for seed in (0, 1)] == expected[:2]
    before = whole(engine)
    for seed, end, limit in ((7, "drop", math.inf), (8, "update", 1e-9)):
        update = step(engine, seed, end=end, limit=limit)
        assert not update.applied
        assert math.isnan(update.grad_norm) if end == "drop" else 1e-9 < update.grad_norm < math.inf
        assert same(before, whole(engine)), end
    bad_element(engine)
    update = step(engine, 9)
    assert (update.applied, math.isfinite(update.grad_norm)) == (False, False)
    assert same(before, whole(engine))
    assert [step(engine, seed, limit=1e9) for seed in (2, 3)] == expected[2:]
    assert same(at_the_end, whole(engine))
    assert all(update.applied for update in expected)
    engine.close()
