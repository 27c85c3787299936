"""A rank that fails alone ends the job at once, under both launchers, with the reason as the last thing said."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import free_port
from support import ROOT

SCRIPT = str(Path(__file__).with_name("one_rank_fails.py"))
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
DEEPSPEED = ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port"]


@pytest.mark.fault("F18")
@pytest.mark.parametrize(
    ("launcher", "stage", "rank", "deaf"),
    [
        pytest.param(TORCHRUN, 3, 1, False, marks=pytest.mark.slow),
        (TORCHRUN, 0, 0, True),
        (DEEPSPEED, 3, 0, True),
    ],
    ids=["gloo", "deaf", "deepspeed"],
)
def test_the_job_ends_with_the_reason(tiny, tmp_path, launcher, stage, rank, deaf):
    env = os.environ | {"FAILING_RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env |= {"DS_ACCELERATOR": "cpu", "PET_SHUTDOWN_TIMEOUT": "300"} | ({"DEAF": "1"} if deaf else {})
    command = [sys.executable, *launcher, *([free_port()] if launcher is DEEPSPEED else []), SCRIPT]
    command += ["train", str(tiny), f"--parallel.zero_stage={stage}"]
    started = time.monotonic()
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert result.returncode == 1, result.stderr
    assert time.monotonic() - started < 100  # most of it is the start
    assert f"process {rank}: ValueError: broken on one rank\n" in result.stderr
    assert "destroy_process_group" not in result.stderr
    assert f"process {1 - rank}: " not in result.stderr  # a failure that only follows is no second reason
    if launcher is TORCHRUN:
        assert result.stderr.index("Root Cause") < result.stderr.rindex("ValueError: broken on one rank")
