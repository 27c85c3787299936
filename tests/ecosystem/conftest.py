"""A trained model, exported, for the tests of what other tools make of it; they run in processes of their own."""

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import train_here, write_tiny

from pretrain.cli import main

OURS = ("PYTHONPATH", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of this process, some set by training in it, that no other program should take for its own."""


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory) -> Path:
    """A run that has learnt a little, so that its logits are no noise."""
    folder = tmp_path_factory.mktemp("trained")
    changes = ["--schedule.total_steps=40", "--optimizer.lr=1e-2", "--model.n_kv_heads=1", "--model.max_seq_len=64"]
    assert train_here(write_tiny(folder, corpus), *changes) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", str(trained), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Text much like the corpus, shorter and longer than the model's context."""
    draws = random.Random(1)
    words = ["".join(draws.choices("abcdefghijklmnop", k=draws.randint(2, 7))) for _ in range(50)]
    return [" ".join(draws.choices(words, k=count)) for count in (1, 2, 3, 5, 8, 12, 60)]


@pytest.fixture
def outside(tmp_path) -> Callable[..., str]:
    """Run Python away from this checkout, where `import kernels` finds what others call so; returns its output."""

    def run(*arguments: str | Path, needs: tuple[str, ...] = (), **environment: str) -> str:
        for package in needs:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed: pip install -e .[eval]")
        kept = {key: value for key, value in os.environ.items() if key not in OURS}
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf-home"), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-P", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, env=kept | offline | environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    return run
