"""Runs tests/kernels/triton in Triton's interpreter, in processes of their own, one per file."""

from pathlib import Path

import pytest
from processes import Process

FOLDER = Path(__file__).parent / "triton"
FILES = sorted(FOLDER.glob("test_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_in_the_interpreter(path):
    command = ["-m", "pytest", "-x", "-p", "no:cacheprovider", "-m", "not slow", str(path)]
    process = Process(*command, TRITON_INTERPRET="1")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-6000:]
    if " passed" not in output:
        assert " skipped" in output, "nothing was run"
        pytest.skip(output.splitlines()[-1])
