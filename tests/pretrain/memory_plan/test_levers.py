"""What parallel.offload and train.expandable_segments do to a plan, and when they are proposed."""

import json
from pathlib import Path

import pytest

from pretrain.cli import main
from pretrain.config import load_config
from pretrain.memory_plan.cards import GIB, fits, reserve
from pretrain.memory_plan.levers import describe, proposals
from pretrain.memory_plan.memory import plan_memory
from pretrain.plan import plan

PATH = str(Path(__file__).parents[3] / "configs" / "llama_1b_dense.toml")
OFFLOAD = "--parallel.offload=optimizer"
DTYPES = {"bf16": 2, "fp32": 4}


def shipped(*overrides: str):
    return load_config(PATH, list(overrides))


@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_state_moves_to_the_host(stage: int, dtype: str, world_size: int) -> None:
    kind = [f"--parallel.zero_stage={stage}", f"--train.dtype={dtype}"]
    without, there = plan_memory(shipped(*kind), world_size), plan_memory(shipped(*kind, OFFLOAD), world_size)
    assert without.host == 0
    assert not {"masters", "moments"} & there.items.keys()
    state = without.items["masters"] + without.items["moments"]
    assert state < there.host < 4 * state  # page-locked memory is rounded up to powers of two
    for phase, moment in there.phases.items():
        assert moment.total < without.phases[phase].total


@pytest.mark.parametrize(
    ("stage", "dtype", "per_parameter"),
    [(1, "bf16", 2 + 4), (1, "fp32", 4 + 4), (2, "bf16", 2 + 4), (2, "fp32", 4), (3, "bf16", 2), (3, "fp32", 4)],
)
def test_what_stays_on_the_gpu(stage: int, dtype: str, per_parameter: int) -> None:
    """Weights, and the sums of gradients that DeepSpeed does not keep in host memory: in fp32 at stage 1 those of the
    parameters; in bf16 a rank's share follows when the activations are gone."""
    items = plan_memory(shipped(f"--parallel.zero_stage={stage}", f"--train.dtype={dtype}", OFFLOAD)).items
    numel = plan(shipped(), 1)["parameters"]["total"]
    sums = "gradients" if (stage, dtype) == (1, "fp32") else "accumulators"
    assert items["weights"] + items.get(sums, 0) == per_parameter * numel


def test_page_locked_memory_is_rounded_up() -> None:
    """1.3e9 parameters: masters and gradients of 5 GiB each take 8; moments are not page-locked."""
    numel = plan(shipped(), 1)["parameters"]["total"]
    largest = 32000 * 2048
    host = plan_memory(shipped("--parallel.zero_stage=2", "--train.dtype=bf16", OFFLOAD)).host
    assert 4 * GIB < 4 * numel < 8 * GIB
    assert host == 8 * numel + 2 * 8 * GIB + 4 * GIB + 2 ** (2 * largest - 1).bit_length()


def test_so_are_sums_of_projected_gradients() -> None:
    """R of a layer's 4 square matrices takes 16 MiB, that of the 3 others 43 MiB, for which there are 64."""
    config = load_config(Path(PATH).with_name("llama_7b_24gb_galore.toml"), ["--train.offload_activations=false"])
    assert plan_memory(config).host == 32 * (4 * 16 + 3 * 64) * 2**20


def test_on_a_cpu_it_is_memory_of_the_process() -> None:
    kind = shipped("--parallel.zero_stage=2", OFFLOAD)
    there = plan_memory(kind, cuda=False)
    assert there.host == 0
    assert {"masters", "moments"} <= there.items.keys()


ALONE = ["--checkpoint.background=false"]
"""Copies of checkpoints are in host memory too."""


def test_the_figures_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    for overrides, said in (([], 0), (["--parallel.zero_stage=2", OFFLOAD], 1)):
        assert main(["plan", PATH, "--json", *overrides, *ALONE]) == 0
        assert bool(json.loads(capsys.readouterr().out)["host_memory_bytes"]) == bool(said)
        assert main(["plan", PATH, *overrides, *ALONE]) == 0
        assert capsys.readouterr().out.count("in host memory") == said
    for overrides, lost in (([], "5 %"), (["--train.expandable_segments=true"], "2 %")):
        assert main(["plan", PATH, *overrides]) == 0
        assert f"{lost} for the allocator" in capsys.readouterr().out


@pytest.mark.slow
def test_offload_is_proposed_before_more_processes() -> None:
    config, card = shipped("--train.micro_batch_size=1", "--train.checkpoint_every_layers=1"), 16 * GIB
    assert not fits(config, 1, card)
    changes = proposals(config, 1, card)
    assert changes[0] == {"parallel.zero_stage": 2, "parallel.offload": "optimizer"}
    assert any("--world-size" in change for change in changes[1:])
    assert all("parallel.offload" not in change for change in proposals(shipped(OFFLOAD), 1, 4 * GIB))


@pytest.mark.slow
def test_offload_and_more_processes_are_proposed_together() -> None:
    config = load_config(PATH.replace("1b", "7b"), ["--train.micro_batch_size=1", "--train.checkpoint_every_layers=1"])
    both = {"parallel.zero_stage": 2, "parallel.offload": "optimizer", "--world-size": 4}
    card = next(size for size in range(8 * GIB, 80 * GIB, GIB // 4) if fits(_changed(config), 4, size))
    assert both in proposals(config, 1, card)


def _changed(config):
    parallel = config.parallel.model_copy(update={"zero_stage": 2, "offload": "optimizer"})
    return config.model_copy(update={"parallel": parallel})


def test_expandable_segments_are_proposed_first_where_they_are_enough() -> None:
    config = shipped()
    total = plan_memory(config).total
    assert reserve(total) - reserve(total, 0.02) == pytest.approx(0.03 * total, abs=2)
    card = total + reserve(total) - int(0.01 * total)
    assert not fits(config, 1, card)
    change = proposals(config, 1, card)[0]
    assert change == {"train.expandable_segments": True}
    assert describe(change) == "--train.expandable_segments=true"
    assert fits(shipped(describe(change)), 1, card)
