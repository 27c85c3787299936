"""launch/consumer_7b.sh: what it refuses, each in a sentence, and what it hands over."""

import re
import sys
from pathlib import Path

import pytest
from shell import bash, fake_environment

SCRIPT = "launch/consumer_7b.sh"


def refused(*arguments: str, **environment: str) -> str:
    """What is said on the way out with status 2."""
    result = bash(SCRIPT, *arguments, **environment)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "The memory of the card is missing."),
        (["8"], "There are no recipes for a card of 8 GiB."),
        (["16", "sara"], "There is no recipe sara for a card of 16 GiB."),
        (["16", "--dry"], "--dry is no --section.key=value."),
    ],
)
def test_a_wrong_argument_lists_the_recipes(arguments, says):
    said = refused(*arguments)
    assert said.startswith(says)
    assert "\n  24 GiB: galore, q_galore, sltrain (default)\n" in said
    assert "\n  12 GiB: apollo_mini (default)\n" in said


def test_a_configuration_that_is_refused_is_refused_here():
    said = refused("12", "--train.grad_clip=1")
    assert 'optimizer.update = "per_layer" knows no global gradient norm' in said


def test_a_dry_run_plans_for_the_card_and_needs_no_gpu():
    result = bash(SCRIPT, "12", "--dry-run", "--run.dir=elsewhere", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    assert "parameters                 6,738,415,616" in result.stdout
    assert "fits 12 GiB: " in result.stdout


TORCH = """
from types import SimpleNamespace
cuda = SimpleNamespace(
    is_available=lambda: {available},
    get_device_name=lambda i: "A card",
    get_device_capability=lambda i: {capability},
    get_device_properties=lambda i: SimpleNamespace(total_memory={gib} * 2**30),
)
"""


def machine(folder: Path, available=True, capability=(8, 6), gib=11.8) -> dict[str, str]:
    """An environment whose torch says so where the GPU is asked, and whose `train` prints its arguments."""
    (folder / "fake").mkdir()
    (folder / "fake" / "torch.py").write_text(TORCH.format(available=available, capability=capability, gib=gib))
    python = f'case "$*" in "- {{"*) PYTHONPATH="{folder}/fake" exec "{sys.executable}" "$@" ;; '
    python += '"-m pretrain train"*) echo "$@" ;; '
    environment = fake_environment(folder / "env", python + f'*) exec "{sys.executable}" "$@" ;; esac')
    return {"VIRTUAL_ENV": str(environment)}


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        ({"available": False}, "There is no GPU that torch can use"),
        pytest.param({"capability": (7, 5)}, "A card has compute capability 7.5 and no bf16", marks=pytest.mark.slow),
        ({"gib": 7.8}, "A card has 7.8 GiB and this recipe needs "),
    ],
)
def test_a_gpu_that_does_not_do(tmp_path, gpu, says):
    assert refused("12", **machine(tmp_path, **gpu)).startswith(says)


@pytest.mark.slow
def test_a_host_without_the_memory_for_activations(tmp_path):
    batch = ["--train.micro_batch_size=65536", "--train.global_batch_size=65536"]
    said = refused("12", *batch, **machine(tmp_path))
    assert re.match(r"This machine has [\d.]+ GiB of memory and this recipe pins [\d.]+ of it: add --train.off", said)


def test_a_corpus_that_is_not_there(tmp_path):
    said = refused("12", f"--data.path={tmp_path}/c4", **machine(tmp_path))
    assert said.startswith(f"There is no corpus in {tmp_path}/c4: make it with sparlow prepare --hf allenai/c4")


def test_what_is_in_order_is_planned_and_trained(tmp_path, corpus):
    arguments = ["12", f"--data.path={corpus}", "--run.dir=a b"]
    result = bash(SCRIPT, *arguments, **machine(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "fits 12 GiB: " in result.stdout
    command = f"-m pretrain train configs/llama_7b_12gb_apollo_mini.toml --data.path={corpus} --run.dir=a b"
    assert result.stdout.endswith(f"{command}\n")
