"""A run on several machines: what the other machine's shell is told, with pdsh and ssh that write it down."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shell import PREFIX, bash
from support import ROOT

ARGUMENTS = [
    "--run.dir=a b",
    "--eval.prompts=['it', \"x y\"]",
    "--data.path=$HOME/c4",
    "--run.dir=a $HOME `date` \\\\ b",
]
ARGUMENTS += ["--eval.prompts=['a','b']", "--data.path=it's;here", "--optimizer.lr=1e-3"]
GIVEN = {"SPARLOW_KERNELS": "torch", "SPARLOW_GPU_MEMORY": '2 $HOME "GiB"', "OMP_NUM_THREADS": "3"}


def program(path: Path, text: str) -> None:
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("file", [None, "own.env"])
def test_other_machines_get_the_variables_and_the_arguments_as_given(tmp_path, file):
    """Those of the caller's DS_ENV_FILE too, or else of the launcher's usual file."""
    program(tmp_path / "ssh", "print('127.0.0.1')")
    program(tmp_path / "pdsh", f"open({str(tmp_path / 'command')!r}, 'w').write(' '.join(sys.argv[6:]))")
    told = tmp_path / "told.json"
    program(tmp_path / "python", f"json.dump([sys.argv[1:], dict(os.environ)], open({str(told)!r}, 'w'))")
    (tmp_path / "hosts").write_text("# two machines\none slots=1\ntwo slots=1\n")
    home = tmp_path / "home"
    home.mkdir()
    (home / (file or ".deepspeed_env")).write_text("NCCL_DEBUG=INFO\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    (tmp_path / "tmp").mkdir()
    here = {"HOSTFILE": str(tmp_path / "hosts"), "PATH": path, "HOME": str(home), "TMPDIR": str(tmp_path / "tmp")}
    if file:
        here["DS_ENV_FILE"] = str(home / file)
    result = bash("launch/deepspeed.sh", "configs/quickstart.toml", *ARGUMENTS, DS_ACCELERATOR="cpu", **here, **GIVEN)
    assert result.returncode == 0, result.stderr
    command = (tmp_path / "command").read_text().replace(f"{PREFIX}/bin/python", str(tmp_path / "python"))
    subprocess.run(["sh", "-c", command], env={"PATH": os.environ["PATH"], "HOME": "/elsewhere"}, check=True)
    arguments, environment = json.loads(told.read_text())
    assert arguments[arguments.index("train") + 1 :] == [str(ROOT / "configs/quickstart.toml"), *ARGUMENTS]
    assert environment.items() >= (GIVEN | {"DS_ACCELERATOR": "cpu", "NCCL_DEBUG": "INFO"}).items()
    assert not any((tmp_path / "tmp").glob("tmp.*")), "the file of variables is removed"


def test_a_single_machine_gets_the_arguments_without_a_shell(tmp_path):
    program(tmp_path / "ssh", "print('127.0.0.1')")
    (tmp_path / "hosts").write_text("# one machine\nlocalhost slots=1\n")
    here = {"HOSTFILE": str(tmp_path / "hosts"), "PATH": f"{tmp_path}:{os.environ['PATH']}", "MASTER_PORT": "29571"}
    given = "configs/quickstart.toml", "--optimizer.lr=it's;$HOME"
    result = bash("launch/deepspeed.sh", *given, DS_ACCELERATOR="cpu", **here)
    assert 'optimizer.lr: expected a valid number, got "it\'s;$HOME"' in result.stderr, result.stderr
