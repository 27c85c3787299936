"""A machine with nothing but Python and the packages."""

import os
import shutil
import subprocess
import sys

import pytest
from support import ROOT


@pytest.mark.slow
@pytest.mark.fault("F29")
def test_the_quick_start_without_network_home_and_programs(corpus, tmp_path):
    """At tiny size: text to a run that grows, its picture, and an export that transformers checks."""
    shutil.copytree(corpus.parent / "text", tmp_path / "text")
    (tmp_path / "tmp").mkdir()
    kept = {key: value for key, value in os.environ.items() if key.startswith(("LD_", "OMP_", "PYTHON"))}
    environment = kept | {
        "PATH": str(tmp_path / "nothing"),
        "HOME": "/proc/no-home",
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONPATH": str(ROOT),
    }
    script = str(ROOT / "tests" / "bare_machine.py")
    command = [sys.executable, script, str(tmp_path)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "growing 1 layer" in done.stdout or "growing 2 layers" in done.stdout
    assert "not installed" not in done.stdout
    assert (tmp_path / "run" / "report" / "loss.png").exists()
