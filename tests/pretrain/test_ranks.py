"""Ranks of single linears in a configuration and in runs: written, overridden, refused, trained, resumed, exported."""

import re

import pytest
import torch
from growth_runs import GROWTH, checkpoint
from processes import train_world
from support import logged, tensor_hashes, train_here, write_tiny

from model.counts import count_parameters
from model.errors import UserError
from model.linear.ranks import rank_of
from pretrain.checkpoint.read import Checkpoint, load_model
from pretrain.config import load_config
from pretrain.config.write import config_hash, to_toml
from pretrain.loop.origin import Start
from pretrain.plan import plan

RANKS = ["--linear.ranks.layers.1.*=12", "--linear.ranks.*.down_proj=5"]
FACTORS = ["--optimizer.name=galore_adamw", "--optimizer.targets=['*.B']"]
GALORE = ["--linear.name=dense", "--optimizer.name=galore_adamw", "--optimizer.rank=8"]


def require_exact_resume(config, folder, options) -> None:
    """A run of 6 steps that pauses after 3 equals one that does not, to the byte."""
    for name, pauses in {"straight": (6,), "paused": (3, 6)}.items():
        for pause in pauses:
            train_here(config, *options, f"--run.dir={folder}/{name}", f"--train.max_steps={pause}")
    assert tensor_hashes(folder / "paused", 6) == tensor_hashes(folder / "straight", 6)
    assert logged(folder / "paused") == logged(folder / "straight")


def test_a_table_of_ranks_is_written_and_read_back(tiny, tmp_path):
    tables = tiny.read_text().replace(
        "[optimizer]", '[linear.ranks]\n"layers.1.*" = 12\nlayers.0.attention.q_proj = 3\n[optimizer]'
    )
    path = tmp_path / "ranks.toml"
    path.write_text(tables)
    config = load_config(path)
    assert config.linear.ranks == (("layers.1.*", 12), ("layers.0.attention.q_proj", 3))
    for comments in (False, True):
        path.write_text(to_toml(config, comments=comments))
        assert load_config(path) == config
        assert config_hash(load_config(path)) == config_hash(config)
    swapped = load_config(tiny, ['--linear.ranks={"*" = 3, "layers.1.*" = 12}'])
    other = load_config(tiny, ['--linear.ranks={"layers.1.*" = 12, "layers.0.*" = 3}'])
    assert config_hash(swapped) != config_hash(other), "the order counts"


def test_a_pattern_is_overridden_by_its_name(tiny):
    assert load_config(tiny, [*RANKS, "--linear.ranks.layers.1.*=6"]).linear.ranks == (
        ("*.down_proj", 5),
        ("layers.1.*", 6),
    )
    assert load_config(tiny, [*RANKS, "--linear.ranks={}"]).linear.ranks == ()
    found = load_config(tiny, [*GALORE, '--optimizer.ranks."layers.0.*"=4']).optimizer
    assert [rank_of(found, f"layers.{layer}.attention.q_proj") for layer in (0, 1)] == [4, 8]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["--linear.ranks.layers.7.*=4"],
            r"linear\.ranks 'layers\.7\.\*' matches nothing; names look like layers\.0\.",
        ),
        (["--linear.ranks.*=4", "--linear.ranks.layers.*=5"], r"linear\.ranks '\*' has no effect: patterns after it"),
        (["--linear.ranks.*.q_proj=33"], r"linear\.ranks '\*\.q_proj' = 33 exceeds the smaller side of layers\.0\.att"),
        (
            ["--linear.ranks.layers.1.*=33"],
            r"linear\.ranks 'layers\.1\.\*' = 33 exceeds the smaller side of layers\.1\.",
        ),
        (["--linear.ranks.*=1.5"], r"linear\.ranks: '\*' = 1\.5 is no rank; give an integer of at least 1"),
        (["--linear.ranks.*=0"], r"linear\.ranks: '\*' = 0 is no rank"),
        (["--linear.ranks=8"], r"linear\.ranks: 8 is no table of names and ranks; for example"),
        (
            ["--linear.ranks=8", "--linear.ranks.*=8"],
            r"linear\.ranks: is a value in the file, expected a table \[lin",
        ),
        (
            ["--linear.name=dense", "--linear.ranks.*=8"],
            r"linear\.ranks: not a key of linear 'dense'; it is for low",
        ),
        ([*GALORE, "--optimizer.ranks.*=40"], r"optimizer\.ranks '\*' = 40 exceeds the smaller side of layers\.0\.att"),
        (
            [*GALORE, "--optimizer.ranks.x=4"],
            r"optimizer\.ranks 'x' matches nothing; names look like layers\.0\.attent",
        ),
        (
            [*GALORE, "--optimizer.targets=['*.q_proj.weight']", "--optimizer.ranks.*.k_proj=4"],
            r"optimizer\.ranks '\*\.k_proj' matches nothing; names look like layers\.0\.attention\.q_proj",
        ),
        (
            ["--linear.name=dense", "--optimizer.name=muon", "--optimizer.ranks.*=4"],
            r'optimizer\.ranks = \{ "\*" = 4 \} has',
        ),
        (
            [*GROWTH, "--linear.ranks.layers.0.*=12"],
            r"growth: layers\.1\.attention\.q_proj has rank 8 by linear\.rank, but it is a copy of layers\.0",
        ),
        (
            [*GROWTH, "--growth.rank=4", "--linear.ranks.*=8"],
            r"growth\.rank 4 has no effect where linear\.ranks decides",
        ),
        (
            [*GROWTH, "--growth.optimizer=copy", "--linear.ranks.layers.1.*=12"],
            r'growth\.optimizer = "copy" copies moments of the same shape only; set it to "reset"',
        ),
        (
            [*GROWTH, "--growth.optimizer=copy", *GALORE, "--optimizer.ranks.layers.1.*=12"],
            r'growth\.optimizer = "copy" needs every layer treated alike, but the optimizer projects attention\.q_pr'
            r"oj\.weight to another rank in some layers",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tiny, overrides, sentence):
    with pytest.raises(UserError) as caught:
        load_config(tiny, overrides)
    assert re.match(sentence, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_a_plan_counts_the_ranks(tiny):
    mixed, uniform = (load_config(tiny, RANKS), load_config(tiny))
    planned = plan(mixed, 1)
    assert planned["parameters"] == count_parameters(mixed.model, mixed.linear)
    assert planned["parameters"]["total"] > count_parameters(uniform.model, uniform.linear)["total"]
    shapes = planned["kernels"][0]["shapes"]
    assert {"32x32 rank 8", "32x32 rank 12", "53x32 rank 8", "53x32 rank 12", "32x53 rank 5"} == set(shapes)


def test_a_run_of_mixed_ranks_resumes_exactly_and_another_table_is_another_run(tiny, tmp_path):
    require_exact_resume(tiny, tmp_path, RANKS)
    source, same = str(tmp_path / "paused"), ["--linear.ranks.layers.1.[af]*.[qkvogu]*=12", RANKS[1]]
    start = Start(source)
    train_here(tiny, *same, f"--run.dir={tmp_path}/same", "--train.max_steps=1", start=start)
    with pytest.raises(UserError, match=r"holds another model than this run: linear\.ranks was"):
        train_here(tiny, RANKS[1], f"--run.dir={tmp_path}/other", start=start)
    with pytest.raises(
        UserError, match=r"linear\.ranks was \(\('layers\.1\.\*', 12\), .*, is \(\('\*\.down_proj', 5\),\)"
    ):
        train_here(tiny, RANKS[1], f"--run.dir={tmp_path}/paused", "--train.max_steps=9")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [*GALORE, "--optimizer.ranks.layers.1.*=3"],
        ["--linear.name=low_rank", *RANKS],
        [*RANKS, "--linear.support=block", "--linear.density=0.5", "--model.ffn_dim=64"],
        [*RANKS, *FACTORS, "--optimizer.rank=8", *(text.replace("linear", "optimizer") for text in RANKS)],
        [*GALORE[:1], "--optimizer.name=q_galore", "--optimizer.rank=8", "--optimizer.ranks.layers.1.*=3"],
    ],
)
def test_other_runs_of_mixed_ranks_resume_exactly(tiny, tmp_path, options):
    require_exact_resume(tiny, tmp_path, options)


def test_a_run_grows_into_mixed_ranks(tiny, tmp_path):
    """Both layers come of one of rank 8 by growth.rank; what the table says of layer 1 begins with the growth."""
    options = [*GROWTH, "--growth.rank=4", *RANKS[:1], f"--run.dir={tmp_path}/grown", "--checkpoint.keep=9"]
    train_here(tiny, *options, "--train.max_steps=6")
    grown = Checkpoint(checkpoint(tmp_path / "grown", 4, grown=True))
    small = Checkpoint(checkpoint(tmp_path / "grown", 4))
    before = load_model(small, torch.device("cpu")).layers[0].attention.q_proj
    layers = load_model(grown, torch.device("cpu")).layers
    assert [len(layers[i].attention.q_proj.A) for i in (0, 1)] == [8, 12]
    assert len(before.A) == 4
    for layer in layers:
        torch.testing.assert_close(layer.attention.q_proj.dense_weight(), before.dense_weight(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_export_of_mixed_ranks_is_the_same_model(tiny, tmp_path):
    from pretrain.using.export import export

    train_here(tiny, *RANKS, "--train.max_steps=3")
    report = export(str(tmp_path / "run"), str(tmp_path / "out"), dtype="fp32", overwrite=False)
    assert report["max_logit_difference"] < 1e-5


@pytest.mark.slow
def test_two_processes_equal_one(corpus, tmp_path):
    config = write_tiny(tmp_path, corpus)
    kinds = {f"stage{stage}": [*RANKS, f"--parallel.zero_stage={stage}"] for stage in (0, 2)}
    kinds["galore"] = [*GALORE, "--optimizer.ranks.layers.1.*=3"]
    for name, options in kinds.items():
        train_here(config, *options, f"--run.dir={tmp_path}/one/{name}", "--train.max_steps=8")
    train_world(
        2,
        config,
        [[*options, f"--run.dir={tmp_path}/two/{name}", "--train.max_steps=8"] for name, options in kinds.items()],
    )
    for name in kinds:
        assert len(logged(tmp_path / "two" / name)) == 8
        one, two = (logged(tmp_path / number / name) for number in ("one", "two"))
        assert max(abs(float(one[step]) - float(two[step])) for step in one) < 1e-5
