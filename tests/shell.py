"""What tests of the shell scripts share: running one, and environments whose Python is a stand-in."""

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT

PREFIX = Path(sys.executable).parents[1]


def bash(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "CONDA_PREFIX"}
    env |= {"VIRTUAL_ENV": str(PREFIX), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(["bash", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def fake_environment(folder: Path, python: str) -> Path:
    """An environment whose Python is the shell script `python`."""
    (folder / "bin").mkdir(parents=True)
    path = folder / "bin" / "python"
    path.write_text(f"#!/bin/sh\n{python}\n")
    path.chmod(0o755)
    return folder
