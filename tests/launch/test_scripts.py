"""The shell scripts: what they find, what they refuse, and that a signal ends a run with a checkpoint."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from processes import free_port
from shell import PREFIX, bash, fake_environment
from support import ROOT

SCRIPTS = sorted(ROOT.joinpath("launch").glob("*.s[hb]*"))


def common(script: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`script` after launch/common.sh."""
    return bash("-c", f'set -euo pipefail; source "{ROOT}/launch/common.sh"; {script}', cwd=cwd, **environment)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    assert bash("-n", str(path)).returncode == 0


@pytest.fixture
def recorded(tmp_path):
    """An environment that has every package, whose pip only writes down what it is asked for."""
    calls = tmp_path / "calls"
    python = f'case "$*" in *"-m pip"*) echo "$@" >> "{calls}" ;; *"sys.prefix"*) echo "{tmp_path}/env" ;; '
    fake_environment(tmp_path / "env", python + f'*) exec "{sys.executable}" "$@" ;; esac')
    return {"VIRTUAL_ENV": str(tmp_path / "env")}, calls


@pytest.mark.parametrize(("extras", "expected"), [("", "-e ."), ("dev", "-e .[dev]")])
def test_install_runs_once_and_asks_pip_for_what_it_knows(recorded, extras, expected):
    environment, calls = recorded
    script = f'find_environment; install "{extras}"; install "{extras}"'
    result = common(script, **environment)
    assert result.returncode == 0, result.stderr
    assert [line.split("constraints.txt ")[1] for line in calls.read_text().splitlines()] == ["torch", expected]
    assert result.stdout.endswith("already installed\n")


def test_install_mends_an_environment_that_lost_a_package(recorded):
    environment, calls = recorded
    result = common('find_environment; install ""; NEEDED+=(nowhere); install ""', **environment)
    assert result.returncode == 1
    assert "does not find them: nowhere" in result.stderr
    assert len(calls.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("extras", "needed", "dev", "made"),
    [
        ("", "json", "nowhere", False),
        ("dev", "json", "csv", False),
        ("", "nowhere", "csv", True),
        ("dev", "json", "nowhere", True),
    ],
)
def test_a_python_on_the_path_is_used_as_it_is_if_nothing_is_missing(tmp_path, extras, needed, dev, made):
    """In a folder without .venv, with a Python that writes down what it is asked to install."""
    calls = tmp_path / "calls"
    python = f'case "$*" in *"-m venv"*|*"-m pip"*) echo "$@" >> "{calls}"; exit 1 ;; '
    python += f'*) exec "{sys.executable}" "$@" ;; esac'
    fake_environment(tmp_path / "system", python)
    (tmp_path / "system" / "bin" / "python3").symlink_to("python")
    script = f'NEEDED=({needed}); NEEDED_DEV=({dev}); use_environment "{extras}"; install "{extras}"'
    path = f"{tmp_path}/system/bin:{os.environ['PATH']}"
    names = ("python3.14", "python3.13", "python3.12", "python3.11")
    for name in names:
        (tmp_path / "system" / "bin" / name).symlink_to("python")
    result = common(script, cwd=tmp_path, VIRTUAL_ENV="", PATH=path)
    assert calls.exists() == made, result.stderr
    if made:
        assert calls.read_text() == "-m venv .venv\n"  # never pip in the system's Python
    else:
        assert result.returncode == 0, result.stderr
        assert "bin/python3, which has what is needed\nalready there\n" in result.stdout


def test_an_old_python_on_the_path_is_not_used(tmp_path):
    """Even where it has everything."""
    python = f'case "$*" in *version_info*) exit 1 ;; *) exec "{sys.executable}" "$@" ;; esac'
    fake_environment(tmp_path / "system", python)
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        (tmp_path / "system" / "bin" / name).symlink_to("python")
    path = f"{tmp_path}/system/bin:{os.environ['PATH']}"
    result = common("NEEDED=(json); use_environment", cwd=tmp_path, VIRTUAL_ENV="", PATH=path)
    assert result.returncode != 0
    assert "is too old: Sparlow needs Python 3.11 or newer" in result.stderr
    assert "which has what is needed" not in result.stdout


def test_missing_counts_an_emptied_package(tmp_path):
    (tmp_path / "emptied").mkdir()
    result = common("find_environment >/dev/null; missing torch emptied nowhere json", cwd=tmp_path)
    assert result.stdout == "emptied nowhere\n"


def test_gpu_check_says_that_there_is_no_gpu(tmp_path):
    if torch.cuda.is_available() or Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    result = bash("launch/gpu_check.sh")
    assert result.returncode == 0, result.stderr
    assert "There is no GPU" in result.stdout
    bare = fake_environment(tmp_path / "env", f'exec "{sys.executable}" -S "$@"')
    result = bash("launch/gpu_check.sh", VIRTUAL_ENV=str(bare))
    assert result.returncode == 0, result.stderr
    assert "no torch in" in result.stdout


def test_gpu_check_fails_where_a_gpu_stays_unchecked(tmp_path):
    """On a copy that takes its own folder for the GPU's device file."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    script = tmp_path / "launch" / "gpu_check.sh"
    script.write_text(script.read_text().replace("/dev/nvidia0", str(tmp_path)))
    bare = fake_environment(tmp_path / "env", f'exec "{sys.executable}" -S "$@"')
    result = bash(str(script), VIRTUAL_ENV=str(bare))
    assert result.returncode == 1
    assert "torch is not installed" in result.stderr
    result = bash(str(script), CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 1
    assert "cannot use it" in result.stderr


def test_gpu_check_tells_a_broken_torch_from_no_gpu(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('a library is missing')\n")
    result = bash("launch/gpu_check.sh", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "torch fails" in result.stderr
    assert "There is no GPU" not in result.stdout


def test_gpu_check_hands_over_where_there_is_a_gpu(tmp_path):
    """With a Python that says there is one, and prints what it is asked to run."""
    answers = f'case "$*" in *cuda*) echo True ;; -m\\ *) echo "$@"; exit 1 ;; *) exec "{sys.executable}" "$@" ;; esac'
    environment = fake_environment(tmp_path / "env", answers)
    default, only = "pretrain/bench/results", ["--only", "7B recipes"]
    handed = [([], default), (["out"], f"{tmp_path}/out"), (only, f"{default} --only 7B recipes")]
    handed.append((["out", *only], f"{tmp_path}/out --only 7B recipes"))
    for arguments, folder in handed:
        result = bash(str(ROOT / "launch/gpu_check.sh"), *arguments, cwd=tmp_path, VIRTUAL_ENV=str(environment))
        assert result.returncode == 1, result.stderr
        assert result.stdout.endswith(f"-m pretrain.bench.gpu_check {folder}\n")


@pytest.mark.parametrize("script", ["torchrun.sh", "deepspeed.sh"])
def test_a_configuration_is_found_from_where_the_caller_is(script, tmp_path):
    """With a Python that prints what it is asked to run."""
    answers = f'case "$*" in -\\ *) exec "{sys.executable}" "$@" ;; *device_count*) echo 0 ;; *) echo "$@" ;; esac'
    environment = fake_environment(tmp_path / "env", answers)
    (tmp_path / "mine.toml").write_text("")
    for given, expected in (("mine.toml", str(tmp_path / "mine.toml")), ("configs/x.toml", "configs/x.toml")):
        arguments = [str(ROOT / "launch" / script), given, "--run.dir=a b"]
        result = bash(*arguments, cwd=tmp_path, VIRTUAL_ENV=str(environment), NPROC="3")
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith(f" pretrain train {expected} --run.dir=a b\n")
        assert " 3 " in result.stdout


@pytest.mark.slow
@pytest.mark.fault("F14")
def test_a_signal_to_the_deepspeed_script_leaves_a_checkpoint_and_no_process(tiny, tmp_path):
    env = os.environ | {"NPROC": "2", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = ["bash", "launch/deepspeed.sh", str(tiny), "--schedule.total_steps=1000000"]
    metrics, output = tmp_path / "run" / "metrics.jsonl", tmp_path / "output"
    with output.open("w") as log:
        env["VIRTUAL_ENV"] = str(PREFIX)
        script = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    started: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 90
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert script.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
            started = psutil.Process(script.pid).children(recursive=True)
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=60) == 143, output.read_text()
        assert psutil.wait_procs(started, timeout=5)[1] == []
    finally:
        for process in [script, *started]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    assert sum("--local_rank" in line for line in output.read_text().splitlines()) >= 2
    assert "stopped at step" in output.read_text()
    assert (tmp_path / "run" / "checkpoints" / "latest").exists()
