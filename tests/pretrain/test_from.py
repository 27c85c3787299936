"""`sparlow train --from`: a new run that begins with another's checkpoint, its origin, kills, and what is refused."""

import hashlib
import json
import shutil
import signal

import pytest
import torch
from growth_runs import GALORE, GALORE8, checkpoint, names, state, summary, tensors, tiny_config
from processes import run_command, run_world
from support import edit_checkpoint, logged, tensor_hashes, train_here

from model.errors import UserError
from pretrain.cli import main
from pretrain.config.schema import Stage
from pretrain.loop.origin import Start

STEPS = 3
OLD = ["--train.max_steps=3", "--schedule.total_steps=60", "--train.global_batch_size=4"]
NEW = ["--schedule.total_steps=6", "--train.global_batch_size=4", "--train.max_steps=2"]
DENSE = ["--linear.name=dense"]
BF16 = ["--train.dtype=bf16", "--optimizer.weights=bf16"]
INT8 = [*DENSE, "--optimizer.name=q_galore", "--optimizer.rank=8", "--optimizer.update_proj_gap=5"]
KINDS = {
    "dense": DENSE,
    "low_rank": ["--linear.name=low_rank"],
    "sparse": [],
    "block": ["--linear.support=block", "--linear.density=0.5", "--model.ffn_dim=64"],
    "bf16": BF16,
    "adamw8bit": ["--optimizer.name=adamw8bit"],
    "galore": GALORE,
    "galore8": GALORE8,
    "int8": [*INT8, "--train.dtype=bf16"],
    "zero1": ["--parallel.zero_stage=1", "--train.dtype=bf16"],
    "zero2": ["--parallel.zero_stage=2"],
    "zero3": ["--parallel.zero_stage=3"],
}


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    return tiny_config(tmp_path_factory.mktemp("config"), corpus)


@pytest.fixture(scope="module")
def old(config, tmp_path_factory):
    """A run of three steps of sparse-plus-low-rank linears under AdamW."""
    run = tmp_path_factory.mktemp("old") / "old"
    assert train_here(config, *OLD, f"--run.dir={run}") == 0
    return run


def on_the_first_data(run, folder):
    """A copy of `run` whose next batch is the corpus' first."""
    shutil.copytree(run, folder)
    newest = checkpoint(folder, STEPS)
    edit_checkpoint(newest, files={"state.json": json.dumps(state(newest) | {"cursor": 0}).encode()})
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_update_is_what_the_old_run_would_have_made(config, tmp_path, monkeypatch, kind, capsys):
    """The same data, the same rate: the same loss; and with moments the same weights and moments, bit by bit."""
    monkeypatch.setattr(Stage, "lr", lambda self, step: 1e-3)
    run, options = tmp_path / "old", KINDS[kind]
    assert train_here(config, *OLD, *options, f"--run.dir={run}") == 0
    further = on_the_first_data(run, tmp_path / "further")
    assert train_here(config, *OLD, *options, f"--run.dir={further}", f"--train.max_steps={STEPS + 1}") == 0
    capsys.readouterr()
    for what in ("weights", "all"):
        new = tmp_path / what
        settings = [*NEW, *options, f"--run.dir={new}", "--train.max_steps=1"]
        assert train_here(config, *settings, start=Start(str(run), what)) == 0
        moments = " and moments" if what == "all" else ""
        assert f"begins with the weights{moments} of step 3 of old (192 tokens seen)" in capsys.readouterr().out
        assert logged(new)[1] == logged(further)[STEPS + 1]
        numbers = state(checkpoint(new, 1))
        assert (numbers["step"], numbers["cursor"], numbers["tokens_seen"]) == (1, 4, 64)
        assert numbers["updates"] == 1 + (STEPS if what == "all" else 0)
    expected, found = tensors(checkpoint(further, STEPS + 1)), tensors(checkpoint(tmp_path / "all", 1))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    fresh = tensors(checkpoint(tmp_path / "weights", 1))
    assert any(not torch.equal(fresh[name], tensor) for name, tensor in expected.items() if "optimizer" in name)


def test_the_origin_is_recorded(old, config, tmp_path):
    run, source = tmp_path / "run", checkpoint(old, STEPS)
    assert train_here(config, *NEW, f"--run.dir={run}", start=Start(str(source))) == 0
    origin = summary(run)["origin"]
    assert origin == state(checkpoint(run, 0))["origin"] == state(checkpoint(run, 2))["origin"]
    assert origin == {
        "run": "old",
        "checkpoint": "step-00000003",
        "step": 3,
        "tokens_seen": 192,
        "state": "weights",
        "config_hash": json.loads((source / "manifest.json").read_text())["config_hash"],
        "manifest_sha256": hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest(),
    }
    assert summary(old)["origin"] is None
    first = state(checkpoint(run, 0))
    assert (first["step"], first["tokens_seen"], first["flops"], first["updates"]) == (0, 0, 0, 0)


def test_supports_come_with_their_values(old, config, tmp_path):
    """Another run.seed draws other data, never other supports under the old values."""
    run = tmp_path / "run"
    assert train_here(config, *NEW, "--run.seed=5", f"--run.dir={run}", start=Start(str(old))) == 0
    before, after = tensors(checkpoint(old, STEPS)), tensors(checkpoint(run, 0))
    model = [name for name in before if name.startswith("model.")]
    supports = [name for name in model if name.endswith((".loc", ".tile_ptr"))]
    assert len(supports) == 28
    assert all(torch.equal(before[name], after[name]) for name in model)
    later = tensors(checkpoint(run, 2))
    assert all(torch.equal(later[name], before[name]) for name in supports)


@pytest.mark.fault("F3")
@pytest.mark.parametrize("fault", ["shard", "mid_file", "before_manifest", "before_rename", "before_latest"])
def test_a_kill_while_it_begins(old, config, tmp_path, fault):
    straight, run = tmp_path / "straight", tmp_path / "run"
    start = Start(str(old), "all")
    assert train_here(config, *NEW, f"--run.dir={straight}", start=start) == 0
    command = ["train", str(config), *NEW, f"--run.dir={run}", "--from", str(old), "--from-state", "all"]
    status, output = run_command(*command, fault=fault)
    assert status == -signal.SIGKILL, output
    assert len(names(run)) == 1
    assert train_here(config, *NEW, f"--run.dir={run}", start=start) == 0
    assert names(run) == ["step-00000000", "step-00000002"]
    assert (tensor_hashes(run, 2), logged(run)) == (tensor_hashes(straight, 2), logged(straight))


def test_the_same_command_goes_on(old, config, tmp_path, capsys):
    """Even when the old run has trained on since, or is gone; so does the command without --from."""
    source, run = tmp_path / "old", tmp_path / "run"
    shutil.copytree(old, source)
    start = Start(str(source))
    assert train_here(config, *NEW, f"--run.dir={run}", start=start) == 0
    assert train_here(config, *OLD, f"--run.dir={source}", "--train.max_steps=4") == 0
    capsys.readouterr()
    assert train_here(config, *NEW, f"--run.dir={run}", "--train.max_steps=3", start=start) == 0
    assert "resuming" in capsys.readouterr().out
    shutil.rmtree(source)
    assert train_here(config, *NEW, f"--run.dir={run}", "--train.max_steps=4", start=start) == 0
    assert train_here(config, *NEW, f"--run.dir={run}", "--train.max_steps=5") == 0
    assert list(logged(run)) == [1, 2, 3, 4, 5]


def test_a_run_with_another_origin_is_refused(old, config, tmp_path):
    run, plain, other = tmp_path / "run", tmp_path / "plain", tmp_path / "other"
    assert train_here(config, *NEW, f"--run.dir={run}", start=Start(str(old))) == 0
    assert train_here(config, *NEW, f"--run.dir={plain}") == 0
    shutil.copytree(plain, other)
    for start in (Start(str(other)), Start(str(old), "all"), Start(str(checkpoint(old, 9)))):
        with pytest.raises(UserError, match=r"began with the weights of step 3 of old .* choose another folder"):
            train_here(config, *NEW, f"--run.dir={run}", start=start)
    with pytest.raises(UserError, match="holds a run that began without --from"):
        train_here(config, *NEW, f"--run.dir={plain}", start=Start(str(old)))


REFUSALS = {
    "model.dim was 32, is 64": ["--model.dim=64"],
    "model.n_layers was 2, is 1": ["--model.n_layers=1"],
    "model.vocab_size was 320, is 384": ["--model.vocab_size=384"],
    "linear.name was 'sparse_low_rank', is 'dense'": DENSE,
    "linear.rank was 8, is 4": ["--linear.rank=4"],
    "linear.density was 0.1, is 0.2": ["--linear.density=0.2"],
    "linear.support was 'element', is 'block'": KINDS["block"],
    "first model growth makes small: model.n_layers was 2, is 1": ["--growth.enabled=true", "--growth.factor=2"],
    "optimizer.weights was 'fp32_master', is 'int8'": KINDS["int8"],
    "--from-state all needs the optimizer": ["--optimizer.name=adamw8bit", "--from-state=all"],
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_what_does_not_fit_is_refused(old, config, tmp_path, capsys, sentence):
    run = tmp_path / "run"
    options = [*NEW, "--schedule.total_steps=60", f"--run.dir={run}", *REFUSALS[sentence]]
    assert main(["train", str(config), *options, "--from", str(old)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in said
    assert not run.exists()


def test_a_run_of_that_name_is_another_where_its_checkpoint_is(old, config, tmp_path):
    run, namesake = tmp_path / "run", tmp_path / "elsewhere" / old.name
    assert train_here(config, *NEW, f"--run.dir={run}", start=Start(str(old))) == 0
    shutil.copytree(old, namesake)
    assert train_here(config, *NEW, f"--run.dir={run}", start=Start(str(namesake))) == 0
    manifest = checkpoint(namesake, STEPS) / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(UserError, match="began with the weights of step 3 of old"):
        train_here(config, *NEW, f"--run.dir={run}", start=Start(str(namesake)))


def test_another_tokenizer_is_refused_and_a_changed_rope_is_said(old, config, corpus, tmp_path, capsys):
    texts = sorted((corpus.parent / "text").iterdir())[:30]
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["prepare", "--text", *map(str, texts), "--out", str(data), "--vocab-size", "320"]) == 0
    with pytest.raises(UserError, match=r"was not made with the tokenizer that .* was trained with; prepare"):
        train_here(config, *NEW, f"--run.dir={run}", f"--data.path={data}", start=Start(str(old)))
    longer = ["--model.rope_theta=500", "--model.rope_scaling=llama3", "--model.rope_factor=2.0"]
    assert train_here(config, *NEW, f"--run.dir={run}", *longer, start=Start(str(old))) == 0
    said = capsys.readouterr().out
    for changed in ("theta was 10000.0, is 500.0", "scaling was 'none', is 'llama3'", "factor was 8.0, is 2.0"):
        assert f"model.rope_{changed}" in said


def test_wrong_arguments_are_refused(old, config, tmp_path, capsys):
    run = tmp_path / "run"
    for arguments, sentence in (
        (["--from", str(tmp_path / "nowhere")], "nowhere: no checkpoint here"),
        (["--from-state", "all"], "--from-state has no effect without --from"),
        (["--from", str(old), f"--run.dir={old}"], "is run.dir itself"),
        (["--from", str(checkpoint(old, STEPS)), f"--run.dir={old}"], "is run.dir itself"),
    ):
        assert main(["train", str(config), *NEW, f"--run.dir={run}", *arguments]) == 2
        assert sentence in capsys.readouterr().err
        assert not run.exists()


def test_growth_begins_with_the_small_model(config, tmp_path):
    small, run = tmp_path / "small", tmp_path / "run"
    assert train_here(config, *OLD, "--model.n_layers=1", f"--run.dir={small}") == 0
    grows = [
        "--growth.enabled=true",
        "--growth.factor=2",
        "--growth.at=192",
        "--train.max_steps=4",
        "--checkpoint.keep=9",
    ]
    assert train_here(config, *NEW, *grows, f"--run.dir={run}", start=Start(str(small))) == 0
    assert names(run)[0] == "step-00000000"
    assert (summary(run)["growths"], summary(run)["origin"]["run"]) == (1, "small")


@pytest.mark.parametrize("kind", [pytest.param("zero2", marks=pytest.mark.slow), "galore"])
def test_two_processes_begin_as_one_does(config, tmp_path, kind):
    source, alone, both = tmp_path / "source", tmp_path / "alone", tmp_path / "both"
    assert train_here(config, *OLD, *KINDS[kind], f"--run.dir={source}") == 0
    assert train_here(config, *NEW, *KINDS[kind], f"--run.dir={alone}", start=Start(str(source), "all")) == 0
    command = ["-m", "pretrain", "train", str(config), *NEW, *KINDS[kind], f"--run.dir={both}"]
    command += ["--from", str(source), "--from-state=all"]
    run_world(2, *command)
    first = tensors(checkpoint(alone, 0))
    assert all(torch.equal(first[name], tensor) for name, tensor in tensors(checkpoint(both, 0)).items())
    one, two = ([float(loss) for loss in logged(run).values()] for run in (alone, both))
    assert two == pytest.approx(one, abs=1e-5)
