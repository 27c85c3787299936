"""Runs that multiply in eight bits: they train as others do, resume byte for byte, and refuse what they cannot do."""

import json
import re

import pytest
import torch
from gradient_errors import KINDS as GRADIENTS
from gradient_errors import main as gradient_errors
from processes import train_world
from support import logged, tensor_hashes, train_here, write_tiny

import pretrain.loop.build
from kernels.eight_bit_linear import EightBit
from model.errors import UserError
from model.linear.base import BaseLinear
from pretrain.checkpoint.read import load_model, open_checkpoint
from pretrain.cli import main
from pretrain.config import load_config
from pretrain.engine import kernel_choices

INT8, FP8, ALL = "--train.products=int8", "--train.products=fp8", "--train.eight_bit_weight_gradients=true"
DENSE = "--linear.name=dense"
Q_GALORE = [DENSE, "--optimizer.name=q_galore", "--optimizer.rank=8", "--optimizer.update_proj_gap=2"]

KINDS = {
    "plain": [],
    "sparse": [INT8],
    "sparse-all": [INT8, ALL],
    "sparse-fp8": [FP8, ALL],
    "sparse-kept": [INT8, "--kernels.keep_weight=step", "--kernels.sum_gradients=dense"],
    "sparse-recomputed": [INT8, "--train.checkpoint_every_layers=1"],
    "dense": [INT8, DENSE],
    "galore": [INT8, DENSE, "--optimizer.name=galore_adamw", "--optimizer.rank=8", "--optimizer.update_proj_gap=3"],
    "codes": [INT8, ALL, *Q_GALORE, "--optimizer.weights=int8"],
    "relora": [INT8, "--linear.name=relora", "--linear.rank=8", "--linear.merge_every=4"],
    "grown": [INT8, "--growth.enabled=true", "--growth.factor=2", "--growth.at=0.1"],
}


@pytest.mark.fault("F1")
@pytest.mark.fault("F2")
@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_run_is_the_straight_one(tiny, tmp_path, kind):
    straight, paused = tmp_path / "straight", tmp_path / "paused"
    train_here(tiny, *KINDS[kind], f"--run.dir={straight}", "--train.max_steps=9")
    for steps in (5, 9):
        train_here(tiny, *KINDS[kind], f"--run.dir={paused}", f"--train.max_steps={steps}")
    assert tensor_hashes(straight, 9) == tensor_hashes(paused, 9)
    assert logged(straight) == logged(paused)


@pytest.mark.parametrize("kind", ["sparse", "sparse-fp8", "dense"])
def test_losses_are_near_those_of_plain_products(tiny, tmp_path, kind):
    plain = [option for option in KINDS[kind] if option not in (INT8, FP8, ALL)]
    runs = {"eight": KINDS[kind], "plain": plain}
    for name, options in runs.items():
        train_here(tiny, *options, "--optimizer.lr=4e-3", f"--run.dir={tmp_path / name}", "--train.max_steps=20")
    eight, exact = (list(map(float, logged(tmp_path / name).values())) for name in runs)
    assert exact[-1] < exact[0] - 0.1
    assert eight == pytest.approx(exact, rel=5e-3)
    assert eight != exact


def test_gradients_are_off_by_a_few_per_cent_and_not_to_one_side(tiny, tmp_path, capsys):
    """What tests/gradient_errors.py prints of a run."""
    train_here(tiny, "--optimizer.lr=4e-3", f"--run.dir={tmp_path}", "--train.max_steps=5")
    capsys.readouterr()
    gradient_errors(str(tmp_path), 4)
    errors = {}
    for name, line in zip(GRADIENTS, capsys.readouterr().out.splitlines(), strict=True):
        assert line.startswith(name)
        found = re.findall(r"(\d+): ([\d.]+) \(([\d.]+)\)", line)
        assert [count for count, *_ in found] == ["1", "4"]
        for _, error, share in found:
            assert 1e-4 < float(error) < 0.1, name
            assert float(share) == pytest.approx(1, abs=0.02), name
        errors[name] = float(found[0][1])
    assert errors["bf16"] < errors["int8, W to nearest"] < errors["int8"] < errors["int8, dW too"]
    assert errors["int8 dW alone, to nearest"] < errors["int8 dW alone"] < errors["fp8 dW alone"]
    assert errors["fp8"] < errors["fp8, dW too"]


@pytest.mark.parametrize("kind", ["sparse-kept", "sparse-recomputed"])
def test_how_long_codes_live_changes_nothing(tiny, tmp_path, kind):
    options = {"other": KINDS[kind], "plain": [INT8, "--kernels.keep_weight=none"]}
    for name, own in options.items():
        train_here(tiny, *own, "--kernels.sum_gradients=factors", f"--run.dir={tmp_path / name}", "--train.max_steps=4")
    assert tensor_hashes(tmp_path / "other", 4) == tensor_hashes(tmp_path / "plain", 4)


@pytest.fixture(scope="module")
def world(corpus, tmp_path_factory):
    """Runs on one process (one/<stage>) and on two (two/<stage>), paused once."""
    folder = tmp_path_factory.mktemp("world")
    config, runs = write_tiny(folder, corpus), []
    for stage in range(4):
        options = [INT8, f"--parallel.zero_stage={stage}"]
        train_here(config, *options, f"--run.dir={folder}/one/{stage}", "--train.max_steps=6")
        runs += [[*options, f"--run.dir={folder}/two/{stage}", f"--train.max_steps={steps}"] for steps in (3, 6)]
    train_world(2, config, runs)
    return folder


@pytest.mark.slow
@pytest.mark.fault("F22")
@pytest.mark.parametrize("stage", range(4))
def test_two_processes_equal_one(world, stage):
    one, two = (list(map(float, logged(world / name / str(stage)).values())) for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-3)  # a code jumps where a last bit decides between neighbours


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([ALL], r'eight_bit_weight_gradients has no effect with train\.products = "bf16"'),
        ([INT8, "--linear.name=low_rank"], r'linear\.name = "low_rank" multiplies with its parts'),
        ([ALL, "--linear.name=low_rank"], r'no effect with linear\.name = "low_rank", which has no W .*; remove it'),
        ([FP8, "--linear.name=cola"], r'linear\.name = "cola" multiplies with its parts'),
        ([INT8, "--linear.name=sst"], r'linear\.name = "sst" multiplies with its parts'),
        (
            [INT8, "--linear.support=block", "--linear.density=0.5", "--model.ffn_dim=64"],
            r'linear\.support = "block" multiplies with its',
        ),
        (
            [INT8, ALL, "--linear.name=lora", "--linear.rank=4"],
            r'no effect with linear\.name = "lora", which has no W that trains; remove it',
        ),
        ([INT8, "--kernels.path=csr"], r'kernels\.path = "csr" has no W'),
    ],
)
def test_what_cannot_be_is_refused(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(tiny, overrides)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "fp32, ZeRO stage 0"),
        ([INT8], "fp32 with int8 products, ZeRO stage 0"),
        ([FP8, ALL], "fp32 with fp8 products, weights' gradients too, emulated, so slow, ZeRO stage 0"),
    ],
)
def test_a_run_says_how_it_multiplies(tiny, capsys, options, said):
    train_here(tiny, *options, "--train.max_steps=1")
    assert said in capsys.readouterr().out


def test_a_run_keeps_its_products(tiny):
    train_here(tiny, INT8, "--train.max_steps=1")
    with pytest.raises(UserError, match=r"train\.products was 'int8', is 'bf16'"):
        train_here(tiny, "--train.max_steps=2")


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 6), True), ((8, 9), False), ((12, 0), False)])
def test_fp8_needs_tensor_cores_for_it(tiny, monkeypatch, capability, refused):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    config, gpu = load_config(tiny, [FP8]), torch.device("cuda", 0)
    if refused:
        with pytest.raises(
            UserError, match=r'needs a GPU of Ada, Hopper or Blackwell, and NVIDIA A100 is older; set "i'
        ):
            pretrain.loop.build.eight_bit(config, gpu)
    else:
        assert pretrain.loop.build.eight_bit(config, gpu) == EightBit("fp8")
    assert pretrain.loop.build.eight_bit(load_config(tiny, [INT8]), gpu) == EightBit("int8")
    assert pretrain.loop.build.eight_bit(load_config(tiny, []), gpu) is None


def test_only_a_run_multiplies_in_eight_bits(tiny, tmp_path):
    """What is loaded to be evaluated multiplies plainly: on GPUs without FP8 too."""
    train_here(tiny, FP8, DENSE, "--train.max_steps=1")
    model = load_model(open_checkpoint(tmp_path / "run"), torch.device("cpu"))
    assert {module.eight_bit for module in model.modules() if isinstance(module, BaseLinear)} == {None}


@pytest.mark.parametrize(("room", "keep"), [(10**9, "step"), (0, "none")])
def test_evaluation_keeps_matrices_where_they_have_room_alone(tiny, monkeypatch, room, keep):
    """Training may keep codes, which are smaller."""
    config = load_config(tiny, [INT8, "--kernels.keep_weight=step"])
    model = pretrain.loop.build.build(config, torch.device("cpu"), how=EightBit("int8"))
    kernel_choices.apply(model, kernel_choices.decide(model, config, {}, 4, torch.device("cpu")))
    supports = [linear.support for linear in kernel_choices.choosing_linears(model)]
    monkeypatch.setattr(kernel_choices, "free_bytes", lambda device: room)
    with kernel_choices.weights_kept(model):
        assert {support.choice.keep for support in supports} == {keep}
    assert {support.choice.keep for support in supports} == {"step"}


@pytest.mark.parametrize("kind", ["sparse", "dense", "codes", "plain"])
def test_evaluation_is_that_of_the_model_as_it_is_exported(tiny, tmp_path, capsys, kind):
    """The held-out loss at the end of training is the one of `sparlow eval`, whose model multiplies plainly."""
    train_here(tiny, *KINDS[kind], "--train.max_steps=3")
    during = json.loads((tmp_path / "run" / "summary.json").read_text())["val_loss"]
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--json", "--tokens=512"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == during
