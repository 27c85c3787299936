"""`sparlow spectrum`: its figures against plain linear algebra, and ranks that train."""

import copy
import json
import shutil
import tomllib

import pytest
import torch
from growing import LINEAR_CONFIGS, tokens, trained
from safetensors.torch import load_file, save
from support import edit_checkpoint, train_here, write_tiny

from model.counts import count_parameters
from model.linear import LINEARS, LowRank
from model.linear.base import BaseLinear
from model.linear.int8 import to_int8
from model.spectrum import singular_values
from pretrain.checkpoint.read import load_model, open_checkpoint
from pretrain.cli import main
from pretrain.config import load_config
from pretrain.spectrum.gradients import watch_gradients
from pretrain.spectrum.measure import compare, measure, timed
from pretrain.spectrum.suggest import suggest

CPU = torch.device("cpu")
NAME = "layers.1.feed_forward.up_proj"


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A run with checkpoints of steps 2 and 4; leave it as it is."""
    folder = tmp_path_factory.mktemp("spectrum")
    train_here(write_tiny(folder, corpus), "--train.max_steps=4", "--checkpoint.every=2")
    return folder / "run"


def spectrum(*arguments) -> int:
    return main(["spectrum", *map(str, arguments)])


def test_figures_are_those_of_the_matrices(run, corpus, tmp_path, capsys):
    assert spectrum(run, "--out", tmp_path / "out", "--gradients", 2, "--data", corpus, "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert table == json.loads((tmp_path / "out/table.json").read_text())
    assert (tmp_path / "out/spectra.png").read_bytes().startswith(b"\x89PNG")
    values = load_file(tmp_path / "out/spectra.safetensors")
    linear = load_model(open_checkpoint(run), CPU).get_submodule(NAME)
    product = linear.scale * (linear.B @ linear.A).detach()
    row = next(row for row in table["matrices"] if row["matrix"] == NAME)
    assert row["shape"] == [53, 32]
    for part, matrix in {"W": linear.dense_weight(), "BA": product, "S": linear.dense_weight() - product}.items():
        exact = torch.linalg.svdvals(matrix.double())
        found = values[f"{NAME}.{part}"]
        torch.testing.assert_close(found.double(), exact[: len(found)], rtol=1e-4, atol=1e-5)
        assert row[part]["largest"] == pytest.approx(exact[0].item(), rel=1e-5)
        assert row[part]["stable_rank"] == pytest.approx((exact.square().sum() / exact[0] ** 2).item(), rel=1e-4)
        parts = exact[exact > 1e-9] / exact.sum()
        assert row[part]["effective_rank"] == pytest.approx((-parts * parts.log()).sum().exp().item(), rel=1e-3)
    assert len(values[f"{NAME}.BA"]) == 8
    assert len(values[f"{NAME}.gradient"]) == 32
    assert [step["step"] for step in table["steps"]] == [2, 4]
    mean = sum(row["W"]["stable_rank"] for row in table["matrices"]) / 14
    assert table["steps"][1]["W"]["stable_rank"] == pytest.approx(mean)
    assert table["steps"][0]["W"] != table["steps"][1]["W"]
    assert table["steps"][0]["gradient"] != table["steps"][1]["gradient"]


def test_a_step_alone_is_printed_as_a_table(run, capsys):
    assert spectrum(run / "checkpoints/step-00000002", "--against", run, "--top", 5) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["matrix", "shape", "W", "BA", "S", "intruders"]
    assert sum(line.startswith("layers.") and line.endswith(" 0") for line in lines) == 14
    assert [line.split()[:4] for line in lines if line.startswith("mean")] == [["mean", "at", "step", "2"]]
    assert lines[-3:] == [f"{run}/spectrum/{name}" for name in ("table.json", "spectra.safetensors", "spectra.png")]


def test_suggested_ranks_are_a_table_that_plans_and_trains(run, tmp_path, capsys):
    assert spectrum(run, "--out", tmp_path / "out", "--reduction", 0.8) == 0
    printed = capsys.readouterr().out
    text = (tmp_path / "out/ranks.toml").read_text()
    assert text in printed
    assert len(tomllib.loads(text)["linear"]["ranks"]) == 14
    config = tmp_path / "config.toml"
    config.write_text((run.parent / "tiny.toml").read_text().replace("[optimizer]", f"{text}\n[optimizer]"))
    found = json.loads((tmp_path / "out/table.json").read_text())["suggested"]
    assert dict(load_config(config).linear.ranks) == found["ranks"]
    assert 0.8 <= found["reduction"] < 0.85
    assert main(["plan", str(config), "--json"]) == 0
    train_here(config, f"--run.dir={tmp_path}/new", "--train.max_steps=1")


def suggested(path, reduction=None, parameters=None):
    """The checkpoint's configuration, with the suggested ranks in its linears, or in low_rank ones for dense."""
    checkpoint = open_checkpoint(path)
    found = measure(checkpoint, CPU, print)
    shapes = {row["matrix"]: tuple(row["shape"]) for row in found.rows}
    whole = {name: parts["W"] for name, parts in found.values.items()}
    ranks = suggest(checkpoint.config, shapes, whole, reduction, parameters).ranks
    linear = checkpoint.config.linear
    linear = LowRank.Config() if linear.name == "dense" else linear
    return checkpoint.config, linear.model_copy(update={"ranks": tuple(ranks.items())})


def test_a_number_of_parameters_is_that_of_the_whole_model(run):
    config, linear = suggested(run, parameters=28000)
    assert 27900 < count_parameters(config.model, linear)["total"] <= 28000


def test_a_dense_run_is_told_ranks_for_low_rank_linears(corpus, tmp_path):
    train_here(write_tiny(tmp_path, corpus), "--linear.name=dense", "--train.max_steps=1")
    config, linear = suggested(tmp_path / "run", reduction=0.3)
    assert max(rank for name, rank in linear.ranks if "attention" in name) == 16
    assert max(rank for name, rank in linear.ranks if "feed_forward" in name) == 19  # (53 * 32) // (53 + 32)
    counts = count_parameters(config.model, linear)
    assert counts["total"] <= counts["dense_equivalent"]


MATRICES = {name: linear for name, linear in LINEAR_CONFIGS.items() if not LINEARS[linear.name].not_a_matrix}


@pytest.mark.parametrize("linear", MATRICES.values(), ids=MATRICES)
def test_gradients_are_those_of_the_whole_map(linear):
    model, batch, found = trained(linear, 2), tokens(), {}
    inputs, targets = batch[:, :-1], batch[:, 1:]
    watch_gradients(model, inputs, targets, lambda name, gradient: found.update({name: gradient}))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    (model(inputs, targets) / targets.numel()).backward()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, BaseLinear)}
    assert found.keys() == linears.keys()
    for name, module in linears.items():  # a linear function of the gradient by W, whatever W is made of
        wanted = {own: parameter.grad for own, parameter in module.named_parameters()}
        module.zero_grad()
        (module(torch.eye(module.in_features)).t() * found[name]).sum().backward()
        for own, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[own], rtol=1e-4, atol=1e-5, msg=f"{name}.{own}")
    model.zero_grad()


def test_gradients_by_8bit_codes():
    model, batch, found = copy.deepcopy(trained(LINEAR_CONFIGS["dense"], 1)), tokens(), {}
    to_int8(model)
    for module in model.modules():
        if isinstance(module, BaseLinear):
            module.reset_parameters(0)
    watch_gradients(model, batch[:, :-1], batch[:, 1:], lambda name, gradient: found.update({name: gradient}))
    assert len(found) == 7
    assert all(singular_values(gradient)[0] > 0 for gradient in found.values())


def test_long_work_says_how_far_it_is(monkeypatch):
    said = []
    monkeypatch.setattr("pretrain.spectrum.measure.SPEAK_SECONDS", -1.0)
    assert list(timed("abc", 3, "step 5", said.append)) == ["a", "b", "c"]
    assert said == ["step 5: 1 of 3 matrices, 0 s left", "step 5: 2 of 3 matrices, 0 s left"]


@pytest.mark.slow
def test_another_depth_is_compared_where_both_have_layers(run, corpus, tmp_path, capsys):
    deep = tmp_path / "deep"
    train_here(write_tiny(tmp_path, corpus), "--model.n_layers=3", f"--run.dir={deep}", "--train.max_steps=1")
    capsys.readouterr()
    found = measure(checkpoint := open_checkpoint(deep), CPU, print)
    said = []
    compare(found, checkpoint, open_checkpoint(run), 32, 0.9999, CPU, said.append)
    assert said == [
        f"--against {run}/checkpoints/step-00000004: has 14 of the 21 matrices; the others are not compared"
    ]
    counts = {row["matrix"]: row.get("intruders") for row in found.rows}
    assert counts["layers.2.attention.q_proj"] is None
    assert counts[NAME] > 0, "three steps apart, few singular vectors are the same"


def broken(folder, source):
    """A copy of a step whose every value of one factor is NaN."""
    shutil.copytree(source, folder)
    files = {}
    for path in folder.glob("*.safetensors"):
        state = load_file(path)
        for name, tensor in state.items():
            if name == f"model.{NAME}.B":
                tensor.fill_(float("nan"))
                files[path.name] = save(state)
    edit_checkpoint(folder, files=files)
    assert files
    return folder


def test_mistakes_are_one_sentence(run, corpus, tmp_path, capsys):
    other = tmp_path / "other"
    write = write_tiny(tmp_path, corpus)
    train_here(write, "--model.dim=64", f"--run.dir={other}", "--train.max_steps=1")
    capsys.readouterr()
    step = tmp_path / "step-00000004"
    nan = broken(tmp_path / "nan" / "step-00000004", run / "checkpoints/step-00000004")
    shutil.copytree(run / "checkpoints/step-00000004", step)
    (tmp_path / "file").write_text("")
    for arguments, sentence in (
        ([tmp_path / "nowhere"], "nowhere: no checkpoint here"),
        ([run, "--against", tmp_path / "nowhere"], "nowhere: no checkpoint here"),
        (
            [run, "--against", other],
            "layers.0.attention.q_proj is 32 x 32 here and 64 x 64 there; give",
        ),
        ([run, "--top", 3], "--top has no effect without --against"),
        ([run, "--data", corpus], "--data has no effect without --gradients"),
        ([run, "--gradients", 1, "--data", tmp_path], "no prepared corpus there"),
        ([run, "--multiple-of", 8], "--multiple-of has no effect without --reduction or --target-parameters"),
        ([run, "--epsilon", 2, "--against", run], "--epsilon 2 is no cosine"),
        ([run, "--gradients", 0], "--gradients 0: must be at least 1"),
        ([run, "--gradients", 10**6], "held-out sequences; ask for less"),
        ([run, "--reduction", 1], "--reduction 1 is no part of all singular values"),
        ([run, "--reduction", 0.999], "--reduction 0.999: every matrix keeps one singular value at least"),
        ([run, "--target-parameters", 10], "--target-parameters 10: with every rank 1 the model has 2"),
        ([run, "--out", tmp_path / "file"], "file: cannot be written"),
        ([step], "lies in no run's folder; say where to write with --out DIR"),
        ([nan, "--out", tmp_path / "out"], f"W of {NAME} has a number that is not finite"),
    ):
        assert spectrum(*arguments) == 2, arguments
        said = capsys.readouterr().err.splitlines()[-1]
        assert sentence in said, said
    assert not list((tmp_path / "out").iterdir())
