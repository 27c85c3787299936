"""Rank and density that grow with a run, and what other commands do with its checkpoints."""

import importlib.util
import json

import pytest
import torch
from growth_runs import GROWS, LAST, checkpoint, ending, grown_run, rewound, summary, tensors, tiny_config

from pretrain.checkpoint.read import Checkpoint, load_model
from pretrain.cli import main

RANK, DENSITY = "--growth.rank=4", "--growth.density=0.04"
NARROW = ["--growth.dim=16", "--growth.n_heads=1", "--growth.ffn_dim=18", "--model.ffn_dim=54"]
DEEPER = ["--growth.operator=zero"]
SAME_DEPTH = ["--growth.factor=4", "--growth.layers=[2]"]  # the default factor, in place of 2
PRESERVED = {
    "rank": [*SAME_DEPTH, RANK],
    "density": [*SAME_DEPTH, DENSITY],
    "rank and density": [*SAME_DEPTH, RANK, DENSITY],
    "depth": DEEPER,
    "all three": [*DEEPER, RANK, DENSITY],
    "rank of low_rank": ["--linear.name=low_rank", *DEEPER, RANK],
    "function_preserving": ["--growth.function_preserving=true"],
    "width": [*SAME_DEPTH, *NARROW],
    "width of dense": [*SAME_DEPTH, *NARROW, "--linear.name=dense", "--model.tie_embeddings=true"],
    "silent width": [*SAME_DEPTH, "--growth.width=zero", "--growth.n_heads=1", "--growth.ffn_dim=40"],
    "width, depth and rank": [*DEEPER, *NARROW, RANK],
}

QUICK = ("density", "all three", "rank of low_rank", "width, depth and rank")
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PRESERVED]


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Undisturbed runs by what grows, with a checkpoint every second step."""
    folder = tmp_path_factory.mktemp("linears")
    done: dict = {}

    def run(name):
        if name not in done:
            home = folder / name.replace(" ", "-")
            config = tiny_config(home, corpus)
            done[name] = config, grown_run(config, home / "run", *PRESERVED[name], checkpoint__every=2)
        return done[name]

    return run


@torch.no_grad()
def logits(folder) -> torch.Tensor:
    model = load_model(Checkpoint(folder), torch.device("cpu"))
    return model(torch.randint(320, (4, 32), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", CASES)
def test_the_function_is_kept(runs, name):
    """Rank 4 to 8 scales B by two, exactly; what is left are sums in another order."""
    _, run = runs(name)
    small, grown = logits(checkpoint(run, GROWS)), logits(checkpoint(run, GROWS, grown=True))
    scale = small.abs().max()
    assert (small - grown).abs().max() < 1e-5 * scale
    assert (small - logits(checkpoint(run, GROWS - 2))).abs().max() > 1e-3 * scale  # so it could be seen


@pytest.mark.parametrize("name", CASES)
def test_what_is_new_trains(runs, name):
    """Every element of every linear moves within four steps.

    Nothing reaches a silent layer before its outputs have moved, nor new rows of A before B's new columns have. A
    hidden unit whose gate and up rows began without any sparse value stands still, as does a channel of queries and
    keys: at this width there are a few, and of the half of it more. Copies that did not move would be half of all.
    """
    sparse = "--linear.name=dense" not in PRESERVED[name]
    most = 0.2 if "width" in name and sparse else 0.1 if DENSITY in PRESERVED[name] else 0.01
    _, run = runs(name)
    before, after = tensors(checkpoint(run, GROWS, grown=True)), tensors(checkpoint(run, GROWS + 4))
    assert before.keys() == {tensor for tensor in after if tensor.startswith("model.")}
    for tensor_name, tensor in before.items():
        if ".support." in tensor_name:
            assert torch.equal(tensor, after[tensor_name]), tensor_name
        elif "_proj." in tensor_name:
            still = (tensor == after[tensor_name]).float().mean().item()
            assert still < most, tensor_name
    assert summary(run)["growth_stages"] == 2


@pytest.mark.parametrize("name", CASES)
def test_rank_and_density_before_and_after(runs, name):
    """Of a 32 x 32 linear: rank 4 and then 8, 4 and then 10 percent of 1024 values; or of a narrower one before."""
    _, run = runs(name)
    small, grown = tensors(checkpoint(run, GROWS)), tensors(checkpoint(run, GROWS, grown=True))
    linear = "model.layers.0.attention.q_proj."
    if linear + "A" in small:
        before, after = (state[linear + "A"].shape[0] for state in (small, grown))
        assert (before, after) == (4 if RANK in PRESERVED[name] else 8, 8)
    if linear + "values" in small:
        area = small[linear + "B"].shape[0] * small[linear + "A"].shape[1]
        density = 0.04 if DENSITY in PRESERVED[name] else 0.1
        assert (len(small[linear + "values"]), len(grown[linear + "values"])) == (int(density * area), 102)


@pytest.mark.parametrize(
    "name", ["all three", "width, depth and rank", pytest.param("rank of low_rank", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("newest", [f"step-{GROWS:08d}", f"step-{GROWS:08d}-grown"])
def test_a_resume_grows_to_the_same(runs, tmp_path, name, newest):
    config, run = runs(name)
    rerun = rewound(run, tmp_path / "run", newest)
    grown_run(config, rerun, *PRESERVED[name], checkpoint__every=2)
    assert ending(rerun) == ending(run)


STAGES = {"small": (GROWS, False, 1), "grown": (GROWS, True, 2), "last": (LAST, False, 2)}


@pytest.fixture(params=STAGES)
def stage(request, runs):
    """A checkpoint of a growth run, and its layers."""
    step, grown, layers = STAGES[request.param]
    return checkpoint(runs("all three")[1], step, grown), layers


def test_eval_and_sample(stage, capsys):
    folder, _ = stage
    assert main(["eval", str(folder), "--tokens", "200", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["step"] == int(folder.name.split("-")[1])
    assert 4 < figures["loss"] < 6
    assert main(["sample", str(folder), "--prompt", "a", "--tokens", "4", "--temperature", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["text"].startswith("a")


def test_eval_of_the_small_and_the_grown_agree(runs, capsys):
    _, run = runs("all three")
    losses = []
    for folder in (checkpoint(run, GROWS), checkpoint(run, GROWS, grown=True), checkpoint(run, LAST), run):
        assert main(["eval", str(folder), "--tokens", "200", "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[2] < losses[1] - 1e-4
    assert losses[3] == losses[2]  # a run folder stands for its newest checkpoint


def test_export(stage, tmp_path, monkeypatch, capsys):
    folder, layers = stage
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    assert main(["export", str(folder), "--out", str(tmp_path / "hf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_logit_difference"] < 1e-4
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_hidden_layers"] == layers
