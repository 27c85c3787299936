"""Signals to torchrun.sh and slurm.sbatch: status 143 after a stop, another after a failure; SLURM requeues a stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shell import PREFIX, fake_environment
from support import ROOT, logged

SCRIPTS = ("torchrun.sh", "slurm.sbatch")
LAUNCHER = """\
case "$*" in
*torch.distributed.run*) ;;
-\\ *) exec "{python}" "$@" ;;
*launch/port.py*) exit ;;
*) echo 0; exit ;;
esac
echo "$@" > "{folder}/arguments"
trap 'echo stopped > "$SPARLOW_STOPPED"; exit 1' TERM
touch "{folder}/started"
while [ ! -e "{folder}/fails" ]; do sleep 0.05; done
exit 1
"""
"""A Python that takes torchrun's place: it ends with 1, after SIGTERM too, and leaves word that the run has stopped."""


@pytest.fixture
def slurm(tmp_path):
    """Variables of a job, with an srun that runs its command here and an scontrol that writes down what it is asked."""
    (tmp_path / "bin").mkdir()
    for name, line in (("srun", 'exec "${@:2}"'), ("scontrol", f'echo "$@" >> "{tmp_path}/scontrol"')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(ROOT)}


def start(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    env = os.environ | {"NPROC": "1", "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": str(PREFIX)} | environment
    env.pop("CONDA_PREFIX", None)
    command = ["bash", str(ROOT / "launch" / script), *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if path.exists() and (path.name != "metrics.jsonl" or path.read_text()):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    raise AssertionError(f"{path} does not come")


@pytest.mark.fault("F14", "F47")
@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_status_tells_a_stop_from_a_failure(tmp_path, slurm, script, stops):
    """Torchrun's own is 1 for both; SLURM requeues a stop alone."""
    fake_environment(tmp_path / "env", LAUNCHER.format(python=sys.executable, folder=tmp_path))
    process = start(script, "x.toml", VIRTUAL_ENV=str(tmp_path / "env"), RESTARTS="3", **slurm)
    wait_for(tmp_path / "started", process)
    if stops:
        process.send_signal(signal.SIGTERM)
    else:
        (tmp_path / "fails").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (143 if stops else 1), output
    asked = tmp_path / "scontrol"
    assert (asked.read_text() if asked.exists() else "") == (
        "requeue 17\n" if stops and script == "slurm.sbatch" else ""
    )
    assert (
        "--standalone --nproc_per_node 1 --max-restarts 3 -m pretrain train x.toml"
        in (tmp_path / "arguments").read_text()
    )


@pytest.mark.fault("F47")
def test_several_machines_meet_at_the_first(tmp_path, slurm):
    """With an scontrol that names them."""
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho node7\necho node8\n")
    fake_environment(tmp_path / "env", LAUNCHER.format(python=sys.executable, folder=tmp_path))
    (tmp_path / "fails").touch()
    nodes = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    start("slurm.sbatch", "x.toml", VIRTUAL_ENV=str(tmp_path / "env"), **slurm, **nodes).communicate(timeout=60)
    where = "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint node7:10017 --rdzv-id 17 --nproc_per_node 1"
    assert where in (tmp_path / "arguments").read_text()


@pytest.mark.fault("F14", "F47")
@pytest.mark.slow
def test_a_preempted_job_goes_on(tiny, tmp_path, slurm):
    """With the real launcher; the job is started again by hand here."""
    options = [str(tiny), "--train.max_steps=200", "--train.micro_batch_size=1", "--schedule.total_steps=200"]
    process = start("slurm.sbatch", *options, **slurm)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert (tmp_path / "scontrol").read_text() == "requeue 17\n"
    assert "job 17 is back in the queue" in output
    process = start("slurm.sbatch", *options, **slurm)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "resuming" in output
    assert len(logged(tmp_path / "run")) == 200
