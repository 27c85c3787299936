"""Two processes compute what one computes, under both launchers, and a run may change its number of processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import free_port, torchrun, train_world
from support import ROOT, logged, train_here, write_tiny

STEPS = 24
STAGES = (0, 1, 2, 3)
KINDS = {f"stage{stage}": f"--parallel.zero_stage={stage}" for stage in STAGES}
KINDS["adamw8bit"] = "--optimizer.name=adamw8bit"


def differences(one: Path, other: Path, key: str = "train/loss") -> list[float]:
    a, b = logged(one, key), logged(other, key)
    assert a.keys() == b.keys()
    return [abs(float(a[step]) - float(b[step])) for step in a]


@pytest.fixture(scope="module")
def both(corpus, tmp_path_factory) -> Path:
    """Runs with one process (`one/<kind>`) and with two, which pause half-way (`two/<kind>`)."""
    folder = tmp_path_factory.mktemp("world")
    config = write_tiny(folder, corpus)
    for name, option in KINDS.items():
        train_here(config, option, f"--run.dir={folder}/one/{name}", f"--train.max_steps={STEPS}")
    pauses = [f"--train.max_steps={last}" for last in (STEPS // 2, STEPS)]
    runs = [(option, f"--run.dir={folder}/two/{name}") for name, option in KINDS.items()]
    train_world(2, config, [[*run, pause] for run in runs for pause in pauses])
    return folder


@pytest.mark.fault("F22")
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_equal_one(both, stage):
    one, two = both / "one" / f"stage{stage}", both / "two" / f"stage{stage}"
    assert len(logged(two)) == STEPS
    assert max(differences(one, two)) < 1e-5
    assert differences(one, two, "train/tokens_seen") == [0] * STEPS


def test_8bit_moments_on_two_processes_equal_those_on_one(both):
    """Codes jump where a last bit of a sum of two orders decides between neighbours."""
    one, two = both / "one/adamw8bit", both / "two/adamw8bit"
    assert len(logged(two)) == STEPS
    assert max(differences(one, two)) < 5e-3
    assert max(differences(one, two)[:5]) < 1e-5
    assert max(differences(one, both / "one/stage0")) < 0.1


@pytest.mark.parametrize("stage", STAGES)
def test_all_stages_compute_the_same(both, stage):
    assert max(differences(both / "one" / "stage0", both / "one" / f"stage{stage}")) < 1e-5


@pytest.mark.fault("F22")
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_run_of_two_processes_goes_on_with_one(both, corpus, tmp_path, stage):
    config = write_tiny(tmp_path, corpus)
    options = [f"--parallel.zero_stage={stage}", "--train.max_steps=52"]
    train_here(config, *options, f"--run.dir={both}/two/stage{stage}")
    train_here(config, *options, f"--run.dir={both}/one/stage{stage}")
    one, two = (logged(both / which / f"stage{stage}") for which in ("one", "two"))
    assert abs(float(one[52]) - float(two[52])) < 1e-5


@pytest.mark.fault("F22")
def test_one_process_goes_on_with_two_and_a_bad_world_is_one_sentence(both, tiny):
    config = str(tiny)
    folder = f"--run.dir={both}/one/stage1"
    options = ["--parallel.zero_stage=1", folder, "--train.max_steps=52"]
    assert torchrun(2, "-m", "pretrain", "train", config, *options).returncode == 0
    train_here(tiny, "--parallel.zero_stage=1", f"--run.dir={both}/two/stage1", "--train.max_steps=52")
    one, two = (logged(both / which / "stage1") for which in ("one", "two"))
    assert abs(float(one[52]) - float(two[52])) < 1e-5

    odd = torchrun(2, "-m", "pretrain", "train", config, "--train.global_batch_size=6", "--train.micro_batch_size=2")
    assert odd.returncode != 0
    assert odd.stderr.count("do not divide over 2 processes") == 1
    assert "Traceback (most recent call last)" not in odd.stderr.split("sparlow train:")[0]


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("galore_adamw", marks=pytest.mark.slow)])
def test_the_deepspeed_launcher(tiny, tmp_path, optimizer):
    env = os.environ | {"NPROC": "2", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    prefix = Path(sys.executable).parents[1]
    command = ["bash", "launch/deepspeed.sh", str(tiny), "--train.max_steps=3"]
    if optimizer != "adamw":
        command += ["--linear.name=dense", f"--optimizer.name={optimizer}", "--optimizer.rank=8"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=env | {"VIRTUAL_ENV": str(prefix)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(logged(tmp_path / "run")) == 3
    assert "x 2 processes" in result.stdout
