"""`sparlow grow`: what it writes, how a run goes on from it, and what it refuses."""

import json
import re
import shlex

import pytest
import torch
from growth_runs import GALORE, checkpoint, names, records, state, summary, tensors, tiny_config
from support import train_here

from pretrain.checkpoint.read import Checkpoint
from pretrain.cli import main
from pretrain.config import load_config
from pretrain.data.dataset import TokenDataset

STEPS, TOKENS = 3, 3 * 4 * 16
SOURCE = ["--model.n_layers=1", "--schedule.total_steps=3", "--train.global_batch_size=4"]
TARGET = ["--schedule.total_steps=4", "--train.global_batch_size=4"]


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    return tiny_config(tmp_path_factory.mktemp("config"), corpus)


@pytest.fixture(scope="module")
def small(config, tmp_path_factory):
    """A finished run of one layer."""
    run = tmp_path_factory.mktemp("small") / "run"
    assert train_here(config, *SOURCE, f"--run.dir={run}") == 0
    return run


@pytest.fixture(scope="module")
def galore(config, tmp_path_factory):
    """The same with GaLore."""
    run = tmp_path_factory.mktemp("galore") / "run"
    assert train_here(config, *SOURCE, *GALORE, f"--run.dir={run}") == 0
    return run


def grow(source, config, run, *arguments: str) -> int:
    return main(["grow", str(source), str(config), *TARGET, f"--run.dir={run}", *arguments])


def first(run):
    """The checkpoint that `sparlow grow` leaves, which is all that it leaves."""
    assert names(run) == ["step-00000000-grown"]
    return checkpoint(run, 0, grown=True)


def test_the_model_is_copied_layer_by_layer(small, config, tmp_path, capsys):
    assert grow(small, config, tmp_path / "a b") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{tmp_path}/a b/checkpoints/step-00000000-grown: 1 layer grown to 2"
    command = told[-1].removeprefix("go on with: sparlow train ")
    assert shlex.split(command) == [str(config), *TARGET, f"--run.dir={tmp_path}/a b"]
    before, after = tensors(checkpoint(small, STEPS)), tensors(first(tmp_path / "a b"))
    expected = {name: tensor for name, tensor in before.items() if name.startswith("model.")}
    expected |= {n.replace(".layers.0.", ".layers.1."): t for n, t in expected.items() if ".layers.0." in n}
    assert after.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(after[name], tensor), name


def test_the_run_goes_on_and_counts_the_small_one(small, config, tmp_path, capsys):
    run = tmp_path / "run"
    assert grow(small, config, run, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["checkpoint"], told["layers"], told["continues_data"]) == (str(first(run)), [1, 2], True)
    assert told["bytes_by_group"]["embedding"] == {"tensors": 1, "copied": 320 * 32 * 4, "drawn": 0, "zeroed": 0}
    cost = summary(small)
    numbers = state(first(run))
    assert (numbers["step"], numbers["cursor"], numbers["updates"], numbers["tokens_seen"]) == (0, 12, 0, TOKENS)

    assert train_here(config, *TARGET, f"--run.dir={run}") == 0
    assert f"beginning with a grown model ({TOKENS} tokens seen)" in capsys.readouterr().out
    came_to = summary(run)
    assert came_to["growth_stages"] == 2
    assert came_to["stages"][0] == cost["stages"][0]
    assert [(s["n_layers"], s["steps"], s["tokens"]) for s in came_to["stages"]] == [(1, 3, TOKENS), (2, 4, 4 * 64)]
    for key in ("flops", "flops_dense_equivalent"):
        assert came_to[key] == cost[key] + came_to["stages"][1][key]
    assert came_to["tokens_seen"] == TOKENS + 4 * 64
    assert came_to["train_seconds"] > cost["train_seconds"]
    logs = records(run)
    assert [log["step"] for log in logs] == [1, 2, 3, 4]
    assert [log["train/tokens_seen"] for log in logs] == [TOKENS + 64 * step for step in range(1, 5)]
    rates = [float(log["train/lr"]) for log in logs]
    assert rates == [load_config(config, TARGET).stages[0].lr(step) for step in range(1, 5)], "a schedule of its own"

    # A rerun that only makes up for the summary: its speed is that of all the steps it counts the seconds of.
    (run / "summary.json").unlink()
    assert train_here(config, *TARGET, f"--run.dir={run}") == 0
    again = summary(run)
    assert again["tokens_per_second"] == pytest.approx(64 * (STEPS + 4) / again["train_seconds"])

    # And the run can be grown again.
    assert grow(run, config, tmp_path / "larger", "--model.n_layers=4") == 0
    stages = state(first(tmp_path / "larger"))["grown"]
    assert stages == came_to["stages"]


def loss_of(path, capsys) -> float:
    capsys.readouterr()
    assert main(["eval", str(path), "--tokens", "512", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["loss"]


def test_function_preserving_keeps_the_loss(small, config, tmp_path, capsys):
    def loss(path) -> float:
        return loss_of(path, capsys)

    wider = ["--linear.rank=12", "--linear.density=0.2"]
    assert grow(small, config, tmp_path / "same", "--operator=zero", "--order", "stack", *wider) == 0
    assert grow(small, config, tmp_path / "preserving", "--function-preserving") == 0
    assert grow(small, config, tmp_path / "other", "--operator", "source_layers", "--source-layers", "0,0") == 0
    assert loss(tmp_path / "same") == pytest.approx(loss(small), abs=1e-6)
    assert loss(tmp_path / "preserving") == pytest.approx(loss(small), abs=1e-6)
    assert abs(loss(tmp_path / "other") - loss(small)) > 1e-5
    assert tensors(first(tmp_path / "same"))["model.layers.1.attention.q_proj.A"].shape == (12, 32)


def test_a_wider_model_goes_on(small, config, tmp_path, capsys):
    wider = ["--model.n_layers=1", "--model.dim=64", "--model.n_heads=4", "--model.ffn_dim=106"]
    assert grow(small, config, tmp_path / "run", *wider) == 0
    assert grow(small, config, tmp_path / "even", *wider, "--share-spread", "0") == 0
    head, even = (tensors(first(tmp_path / name))["model.lm_head.weight"] for name in ("run", "even"))
    assert torch.equal(even[:, ::2], even[:, 1::2])
    assert not torch.equal(head[:, ::2], head[:, 1::2])
    losses = [loss_of(path, capsys) for path in (small, tmp_path / "run")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert tensors(first(tmp_path / "run"))["model.layers.0.attention.q_proj.B"].shape == (64, 8)
    silent = ["--model.n_layers=1", "--model.n_heads=3", "--model.head_dim=16", "--model.ffn_dim=64", "--width", "zero"]
    assert grow(small, config, tmp_path / "silent", *silent) == 0
    losses.append(loss_of(tmp_path / "silent", capsys))
    assert losses[2] == pytest.approx(losses[0], abs=1e-6)
    assert train_here(config, *TARGET, *wider, f"--run.dir={tmp_path}/run", "--train.max_steps=1") == 0


@pytest.mark.parametrize(("mode", "updates"), [("copy", STEPS), ("copy_reset_step", 0)])
def test_the_optimizer_goes_along(galore, config, tmp_path, mode, updates):
    run = tmp_path / "run"
    assert grow(galore, config, run, *GALORE, "--optimizer", mode) == 0
    before, after = tensors(checkpoint(galore, STEPS)), tensors(first(run))
    moments = [name for name in before if name.startswith("optimizer.layers.0.") and "exp_avg" in name]
    assert len(moments) > 14
    for name in moments:
        assert torch.equal(after[name], before[name])
        assert torch.equal(after[name.replace("layers.0.", "layers.1.")], before[name])
    assert state(first(run))["updates"] == after["optimizer.updates"] == updates
    assert train_here(config, *TARGET, *GALORE, f"--run.dir={run}", "--train.max_steps=1") == 0
    assert state(checkpoint(run, 1))["updates"] == updates + 1


@pytest.mark.parametrize("other", ["--run.seed=5", "--train.seq_len=8", "--data.packing=document"])
def test_another_order_of_the_data_begins_at_its_start(small, config, tmp_path, capsys, other):
    assert grow(small, config, tmp_path / "run", other) == 0
    assert "the new run begins at its start" in capsys.readouterr().out
    assert state(first(tmp_path / "run"))["cursor"] == 0


def test_the_text_that_follows(small, config, corpus, tmp_path):
    """The first batch is the one after the small model's last."""
    assert grow(small, config, tmp_path / "run") == 0
    numbers = state(first(tmp_path / "run"))
    stream = TokenDataset(corpus, "train", 16, "concat", 0)
    seen = stream.batch(0, STEPS * 4).tokens
    following = stream.batch(numbers["cursor"], 4).tokens
    assert not any(torch.equal(row, old) for row in following for old in seen)


def test_stored_bf16_weights_decide_the_precision(small, config, tmp_path):
    """The source computes in fp32, which weights in bf16 cannot: a run that could not be opened."""
    assert grow(small, config, tmp_path / "run", "--train.dtype=auto", "--optimizer.weights=bf16") == 0
    assert Checkpoint(first(tmp_path / "run")).config.train.dtype == "bf16"
    assert grow(small, config, tmp_path / "same", "--train.dtype=auto") == 0
    assert Checkpoint(first(tmp_path / "same")).config.train.dtype == "fp32"


REFUSED = {
    "no checkpoint": (["SOURCE=nowhere"], r"nowhere: no checkpoint here"),
    "growth.enabled": (
        ["--growth.enabled=true", "--growth.factor=2", "--growth.at=0.5"],
        r"growth\.enabled = true lets .* = false$",
    ),
    "wider heads": (["--model.dim=64"], r"adds heads and makes none wider, but they have 16 channels .* and 32 in"),
    "no multiple": (
        ["--model.ffn_dim=64"],
        r"the small model's ffn_dim 53 does not divide model\.ffn_dim 64; .* --width \"zero\"$",
    ),
    "nothing is shared": (["--share-spread", "1"], r"--share-spread have no effect where nothing grows in width"),
    "silent channels": (
        ["--model.dim=64", "--model.head_dim=16", "--width", "zero"],
        r"the small model's dim 32 cannot grow with --width \"zero\": zeros among",
    ),
    "shares of nothing": (
        ["--width", "zero", "--share-spread", "1"],
        r"--share-spread has no effect with --width zero",
    ),
    "moments of other widths": (["--model.ffn_dim=106", "--optimizer", "copy"], r"--optimizer copy copies moments of"),
    "other linear": (["--linear.name=dense"], r"linear\.name 'sparse_low_rank' cannot become 'dense'"),
    "other norm and support": (
        ["--linear.support=block", "--linear.density=0.5", "--model.ffn_dim=64", "--model.norm_eps=1e-5"],
        r"adds layers.* model\.norm_eps is 1e-06 in the small model and 1e-05",
    ),
    "less rank": (["--linear.rank=4"], r"linear\.rank 4 is less than the small model's 8; .* give 8 or more$"),
    "less density": (["--linear.density=0.05"], r"linear\.density 0\.05 is less than the small model's 0\.1"),
    "nothing grows": (["--model.n_layers=1"], r"model\.n_layers: .* has 1 layer and these linears already"),
    "unknown operator": (["--operator", "double"], r"--operator 'double' is none of stack, "),
    "unknown order": (["--operator", "zero", "--order", "up"], r"--order 'up' is none of stack, "),
    "unused order": (["--order", "stack"], r"--order has no meaning with --operator = 'stack'"),
    "operator cannot": (["--operator", "solar", "--model.n_layers=4"], r"model\.n_layers: order 'solar' cannot grow"),
    "short list": (["--operator", "source_layers", "--source-layers", "0"], r"--source-layers names 1 "),
    "no such layer": (["--operator", "source_layers", "--source-layers", "0,1"], r"--source-layers\[1\] is 1"),
    "moments of less rank": (["--linear.rank=12", "--optimizer", "copy"], r"--optimizer copy copies moments of the"),
    "another optimizer": (["--optimizer", "copy", "--optimizer.eps=1e-6"], r"optimizer\.eps was 1e-08 and is 1e-06"),
    "no corpus": (["--data.path=nowhere"], r"nowhere: no prepared corpus there"),
    "precision": (["--optimizer.weights=bf16"], r'optimizer\.weights = "bf16" contradicts train\.dtype = "fp32"'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(small, config, tmp_path, capsys, name):
    arguments, sentence = REFUSED[name]
    source = tmp_path / "nowhere" if arguments == ["SOURCE=nowhere"] else small
    assert refusal(source, config, tmp_path / "run", capsys, *arguments, expect=sentence)
    assert not (tmp_path / "run").exists()


def refusal(source, config, run, capsys, *arguments: str, expect: str) -> bool:
    """Whether the arguments are refused in one sentence that `expect` is found in."""
    capsys.readouterr()
    given = [argument for argument in arguments if not argument.startswith("SOURCE=")]
    assert grow(source, config, run, *given) == 2
    *_, last = error = capsys.readouterr().err.splitlines()
    assert all("drops from the file" in line for line in error[:-1])
    assert last.startswith("sparlow grow: ")
    assert re.search(expect, last), last
    return True


def test_a_shrunken_model_is_refused(small, config, tmp_path, capsys):
    assert grow(small, config, tmp_path / "run") == 0
    expect = r"model\.n_layers|growth\.factor: 2 layers cannot grow to 1"
    assert refusal(tmp_path / "run", config, tmp_path / "new", capsys, "--model.n_layers=1", expect=expect)
    assert not (tmp_path / "new").exists()


def test_copying_needs_moments_that_can_be_copied(small, galore, config, tmp_path, capsys):
    assert grow(small, config, tmp_path / "grown") == 0
    arguments = ["--model.n_layers=4", "--optimizer", "copy"]
    expect = r"--optimizer copy: .*step-00000000-grown holds no optimizer state, as its model has just grown"
    assert refusal(tmp_path / "grown", config, tmp_path / "run", capsys, *arguments, expect=expect)

    some = [*GALORE, '--optimizer.targets=["layers.0.*.weight"]']
    run = tmp_path / "some"
    assert train_here(config, *SOURCE, *some, f"--run.dir={run}") == 0
    expect = r'--optimizer copy needs every layer treated alike, .* in some layers only; use "reset"'
    assert refusal(run, config, tmp_path / "run", capsys, *some, "--optimizer", "copy", expect=expect)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [[], ["--function-preserving"]])
def test_codes_are_not_grown_from_weights(galore, config, tmp_path, capsys, arguments):
    """Nor do layers of codes start silent."""
    codes = [*GALORE, "--optimizer.weights=int8", *arguments]
    expect = (
        "start layers at zero, which" if arguments else r'"int8" cannot go on from "fp32_master" of the small model'
    )
    assert refusal(galore, config, tmp_path / "run", capsys, *codes, expect=expect)
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_is_refused(small, config, corpus, tmp_path, capsys):
    other = tmp_path / "other"
    text = ["--text", str(corpus.parent / "text" / "000.txt"), "--text", str(corpus.parent / "text" / "001.txt")]
    assert main(["prepare", *text, "--out", str(other), "--vocab-size", "300"]) == 0
    expect = r"other was not made with the tokenizer that .* was trained with; prepare it with --tokenizer "
    assert refusal(small, config, tmp_path / "run", capsys, f"--data.path={other}", expect=expect)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_with_checkpoints_is_left_alone(small, config, capsys):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*") if path.name != "lock"}
    assert refusal(small, config, small, capsys, expect=r"run\.dir: .* holds checkpoints already; choose another$")
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*") if path.name != "lock"} == before


def test_a_damaged_checkpoint_is_refused(small, config, tmp_path, capsys):
    import shutil

    shutil.copytree(small, tmp_path / "damaged")
    shard = checkpoint(tmp_path / "damaged", STEPS) / "tensors-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    for source in (tmp_path / "damaged", shard.parent):
        expect = r"tensors-00000\.safetensors is damaged \(sha256 differs\); name an older step's folder$"
        assert refusal(source, config, tmp_path / "run", capsys, expect=expect)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_nothing(small, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SPARLOW_FAULT", "disk_full")
    assert grow(small, config, tmp_path / "run") == 1
    assert "the grown model could not be written" in capsys.readouterr().err
    assert names(tmp_path / "run") == []
