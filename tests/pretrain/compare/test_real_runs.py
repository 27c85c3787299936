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

MEASURED = ("train_seconds", "tokens_per_second", "wall_seconds", "peak_resident_bytes", "folder")


def start(path, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain", "compare", str(path)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def results(folder):
    found = json.loads((folder / "suite" / "results.json").read_text())
    return [{key: value for key, value in one.items() if key not in MEASURED} for one in found]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_killed_midway_it_comes_to_the_same(tmp_path, corpus, number):
    """Two methods, two rates and two seeds of three steps. A kill of the command itself stops its run, too."""
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    paths = [write_suite(folder, corpus, steps=3, equal='["tokens", "flops"]') for folder in folders]
    whole = start(paths[0], tmp_path)
    output, _ = whole.communicate(timeout=900)
    assert whole.returncode == 0, output

    killed = start(paths[1], tmp_path)
    second = folders[1] / "suite" / "runs" / "dense+adamw" / "lr-0.002_seed-0"
    while not (second / "metrics.jsonl").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(number)
    output, _ = killed.communicate(timeout=300)
    assert killed.returncode == (143 if number == signal.SIGTERM else -number), output
    again = start(paths[1], tmp_path)
    output, _ = again.communicate(timeout=900)
    assert again.returncode == 0, output
    assert "lr 0.001  seed 0" not in output.partition("[2 of")[0].partition("dense + adamw")[2]
    assert results(folders[1]) == results(folders[0])
    for name in ("loss_tokens.png", "loss_flops.png", "memory.png", "curves.png", "rates.png"):
        assert (folders[1] / "suite" / name).read_bytes() == (folders[0] / "suite" / name).read_bytes()
    logs = [(folder / "suite" / "runs" / "thin+adamw").glob("*/metrics.jsonl") for folder in folders]
    assert len(list(logs[0])) == len(list(logs[1])) == 5
