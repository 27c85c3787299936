"""A comparison of real runs: killed midway and gone on with, it comes to what an undisturbed one does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from suites import write_suite
from support import ROOT

MEASURED = ("train_seconds", "tokens_per_second", "wall_seconds", "peak_resident_bytes", "folder", "commit")
PICTURES = ("loss_tokens.png", "memory.png", "curves.png", "rates.png")


def start(path, *options):
    extensions = str(path.parent / "extensions")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": extensions, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain", "compare", str(path), *options],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process, status):
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == status, output


def suite(folder, corpus):
    """Two methods, two rates and two seeds of three steps."""
    folder.mkdir()
    return write_suite(folder, corpus, steps=3, equal='["tokens"]')


def results(folder):
    found = json.loads((folder / "suite" / "results.json").read_text())
    return [{key: value for key, value in one.items() if key not in MEASURED} for one in found]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The folder of a comparison that nothing disturbs, of two runs at a time."""
    folder = tmp_path_factory.mktemp("whole") / "whole"
    finish(start(suite(folder, corpus), "--jobs", "2"), 0)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_stopped_midway_it_comes_to_the_same(tmp_path, corpus, whole, number):
    """The second run ends with the command, also where that is killed: it would compute for nobody, and hold its lock
    against the one that goes on.
    """
    folder = tmp_path / "other"
    path = suite(folder, corpus)
    first, second = (folder / "suite" / "runs" / "dense+adamw" / f"lr-{rate}_seed-0" for rate in (0.001, 0.002))
    process = start(path)
    while not (second / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    finish(process, 143 if number == signal.SIGTERM else -number)
    ended = (first / "summary.json").stat().st_mtime_ns
    finish(start(path), 0)
    assert (first / "summary.json").stat().st_mtime_ns == ended
    assert results(folder) == results(whole)
    for name in PICTURES:
        assert (folder / "suite" / name).read_bytes() == (whole / "suite" / name).read_bytes()
