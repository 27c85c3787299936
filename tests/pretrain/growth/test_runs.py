"""A run that grows: its steps, figures and learning rates, and what is in the checkpoint of the grown model."""

import math
from itertools import pairwise

import pytest
import torch
from growth_runs import (
    DENSE,
    GALORE,
    GROWS,
    LAST,
    checkpoint,
    ending,
    grown_run,
    names,
    records,
    rewound,
    state,
    summary,
    tensors,
    tiny_config,
)
from support import logged, train_here

from pretrain.config import load_config
from pretrain.plan import flops_per_update

KINDS = {
    "dense": DENSE,
    "low_rank": ["--linear.name=low_rank"],
    "element": [],
    "block": ["--linear.support=block", "--linear.density=0.5", "--model.ffn_dim=64"],
    "galore": GALORE,
}
RATE = 1e-3  # tiny.toml's


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """By kind, an undisturbed run with a checkpoint every second step."""
    folder = tmp_path_factory.mktemp("grown")
    done: dict = {}

    def run(kind):
        if kind not in done:
            config = tiny_config(folder / kind, corpus)
            done[kind] = grown_run(config, folder / kind / "run", *KINDS[kind], checkpoint__every=2)
        return done[kind]

    return run


def test_every_step_is_logged_once_and_everything_counted_rises(runs):
    logs = records(runs("element"))
    assert [record["step"] for record in logs] == list(range(1, LAST + 1))
    for key in ("train/tokens_seen", "train/flops", "train/flops_dense_equivalent"):
        values = [float(record[key]) for record in logs]
        assert all(one < other for one, other in pairwise(values)), key
    assert [record["train/tokens_seen"] for record in logs] == [64 * step for step in range(1, LAST + 1)]
    assert [record["growth/layers"] for record in logs] == [1] * GROWS + [2] * (LAST - GROWS)


def executed(config, run, layers: int, kind: str) -> float:
    """FLOPs of an update of a model that does not grow, its linears computing as those of `run`."""
    config = load_config(config, [f"--model.n_layers={layers}", "--train.global_batch_size=4"])
    return flops_per_update(config, kind, state(checkpoint(run, LAST))["kernels"], 1)


def test_the_stages_sum_to_the_run(runs, corpus, tmp_path):
    told = summary(runs("element"))
    small, large = told["stages"]
    assert told["growth_stages"] == len(told["stages"]) == 2
    assert (small["n_layers"], small["steps"], small["tokens"]) == (1, GROWS, 64 * GROWS)
    assert (large["n_layers"], large["steps"], large["tokens"]) == (2, LAST - GROWS, 64 * (LAST - GROWS))
    config = tiny_config(tmp_path, corpus)
    for key, kind in (("flops", "executed"), ("flops_dense_equivalent", "dense_equivalent")):
        assert small[key] == GROWS * executed(config, runs("element"), 1, kind)
        assert large[key] == (LAST - GROWS) * executed(config, runs("element"), 2, kind)
        assert told[key] == small[key] + large[key]
    assert told["tokens_seen"] == small["tokens"] + large["tokens"] == 64 * LAST
    assert told["parameters"] == state_size(runs("element"))


def state_size(run) -> int:
    model = tensors(checkpoint(run, LAST))
    kept = [t for name, t in model.items() if name.startswith("model.") and ".support." not in name]
    return sum(tensor.numel() for tensor in kept)


def test_two_growths(corpus, tmp_path):
    options = ["--growth.factor=[2, 2]", "--growth.at=[0.25, 0.5]", "--model.n_layers=4"]
    config = tiny_config(tmp_path, corpus)
    run = grown_run(config, tmp_path / "straight", *options)
    told = summary(run)
    assert told["growth_stages"] == len(told["stages"]) == 3
    assert [(s["n_layers"], s["steps"], s["tokens"]) for s in told["stages"]] == [(1, 3, 192), (2, 3, 192), (4, 6, 384)]
    updates = [executed(config, run, layers, "executed") for layers in (1, 2, 4)]
    assert [s["flops"] for s in told["stages"]] == [3 * updates[0], 3 * updates[1], 6 * updates[2]]
    assert told["flops"] == sum(s["flops"] for s in told["stages"])
    assert [int(layers) for layers in logged(run, "growth/layers").values()] == [1] * 3 + [2] * 3 + [4] * 6
    assert names(run) == [f"step-{n}" for n in ("00000003", "00000003-grown", "00000006", "00000006-grown", "00000012")]
    rerun = rewound(run, tmp_path / "rerun", "step-00000003")  # both growths again
    grown_run(config, rerun, *options)
    assert ending(rerun) == ending(run)


def cosine(step: int, total: int, warmup: int) -> float:
    """tiny.toml's schedule, by hand."""
    if step <= warmup:
        return step / warmup
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


RATES = {
    "reset": ([], RATE, lambda step: cosine(step - GROWS, LAST - GROWS, 1)),
    "continue": (["--growth.schedule=continue"], RATE, lambda step: cosine(step, LAST, 1)),
    "long_warmup": (["--growth.warmup_fraction=0.5"], RATE, lambda step: cosine(step - GROWS, LAST - GROWS, 4)),
    "small_rate": (["--growth.lr=0.004"], 0.004, lambda step: cosine(step - GROWS, LAST - GROWS, 1)),
}


@pytest.mark.parametrize(
    "name", ["reset", "continue", *(pytest.param(n, marks=pytest.mark.slow) for n in [*RATES][2:])]
)
def test_the_learning_rate_before_and_after(corpus, tmp_path, name):
    """Before growth that of the whole run's schedule, then one that starts again, unless it continues."""
    options, before, after = RATES[name]
    last = GROWS + 6
    run = grown_run(tiny_config(tmp_path, corpus), tmp_path / "run", *options, train__max_steps=last)
    rates = {step: float(rate) for step, rate in logged(run, "train/lr").items()}
    expected = {step: before * cosine(step, LAST, 1) for step in range(1, GROWS + 1)}
    expected |= {step: RATE * after(step) for step in range(GROWS + 1, last + 1)}
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_its_source_to_the_bit(runs, kind):
    run = runs(kind)
    small, grown = tensors(checkpoint(run, GROWS)), tensors(checkpoint(run, GROWS, grown=True))
    expected = {}
    for name, tensor in small.items():
        if name.startswith("model."):
            expected[name] = tensor
            if ".layers.0." in name:
                expected[name.replace(".layers.0.", ".layers.1.")] = tensor
    assert grown.keys() == expected.keys()
    for name, tensor in expected.items():
        assert grown[name].dtype == tensor.dtype, name
        assert torch.equal(grown[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_move_every_parameter_of_every_layer(runs, kind):
    """A new layer that the optimizer does not know would stand still."""
    run = runs(kind)
    before = tensors(checkpoint(run, GROWS, grown=True))
    after = tensors(checkpoint(run, GROWS + 2))
    weights = [name for name in before if name.startswith("model.") and ".support." not in name]
    assert len([name for name in weights if ".layers.1." in name]) == len([n for n in weights if ".layers.0." in n]) > 7
    for name in weights:
        still = (before[name] == after[name]).float().mean().item()
        assert still < (0.01 if "embeddings" not in name else 1.0), name  # most tokens are in no batch
        assert torch.equal(before[name], tensors(checkpoint(run, GROWS))[name.replace("layers.1.", "layers.0.")])
    moments = [name for name in after if name.startswith("optimizer.layers.1.") and "exp_avg" in name]
    assert len(moments) >= 2 * len([name for name in weights if ".layers.1." in name])
    for name in moments:
        assert after[name].abs().max() > 0, name
        assert not torch.equal(after[name], after[name.replace("layers.1.", "layers.0.")]), name


def test_the_numbers_go_on_but_those_of_the_optimizer(runs):
    small, grown = state(checkpoint(runs("element"), GROWS)), state(checkpoint(runs("element"), GROWS, grown=True))
    stage = {"n_layers": 1, "steps": GROWS, "tokens": 64 * GROWS, **{k: v for k, v in small.items() if "flops" in k}}
    assert small["kernels"]
    assert (small["cursor"], small["updates"], small["stage"], small["grown"]) == (4 * GROWS, GROWS, 0, [])
    begun = {"updates": 0, "kernels": {}, "losses": [], "grad_norms": []}
    assert grown == small | begun | {"stage": 1, "stage_start": GROWS, "grown": [stage]}
    later = state(checkpoint(runs("element"), LAST))
    assert (later["cursor"], later["updates"], later["grown"]) == (4 * LAST, LAST - GROWS, [stage])


def test_each_stage_draws_other_numbers(corpus, tmp_path):
    options = ["--growth.enabled=true", "--growth.factor=[2, 2]", "--growth.at=[0.2, 0.5]", "--model.n_layers=4"]
    config = load_config(tiny_config(tmp_path, corpus), [*options, "--run.seed=7"])
    seeds = [stage.config.run.seed for stage in config.stages]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_sharded_weights_grow_and_train_on(runs, corpus, tmp_path, dtype):
    options = ["--parallel.zero_stage=3", f"--train.dtype={dtype}"]
    last = GROWS + 3
    run = grown_run(tiny_config(tmp_path, corpus), tmp_path / "run", *options, train__max_steps=last)
    assert summary(run)["growth_stages"] == 2
    losses, unsharded = (list(map(float, logged(one).values())) for one in (run, runs("element")))
    assert losses == pytest.approx(unsharded[:last], abs=1e-5 if dtype == "fp32" else 0.02)


def test_a_finished_run_does_not_grow_again(runs, corpus, tmp_path, capsys):
    config = tiny_config(tmp_path, corpus)
    run = rewound(runs("element"), tmp_path / "again", "step-00000012")
    before = names(run)
    grown_run(config, run)
    assert "growing" not in capsys.readouterr().out
    assert names(run) == before
    assert ending(run) == ending(runs("element"))
    assert train_here(config, f"--run.dir={tmp_path}/plain", "--train.max_steps=2") == 0
    assert summary(tmp_path / "plain")["growth_stages"] == 1
