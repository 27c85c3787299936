"""Export and its check hold one part of a model at a time, so a model exports where it could not be loaded."""

from pathlib import Path

import pytest
from support import train_here, write_tiny

from pretrain.using import export as exporting
from pretrain.using.parts import Parts

LAYERS, DIM = 32, 256
WHOLE = 4 * LAYERS * (4 * DIM * DIM + 3 * DIM * DIM)
"""Bytes of all blocks, merged, in fp32."""


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A model whose weight is in its many blocks."""
    folder = tmp_path_factory.mktemp("deep")
    changes = [f"--model.n_layers={LAYERS}", f"--model.dim={DIM}", f"--model.ffn_dim={DIM}", "--linear.rank=4"]
    changes += ["--linear.density=0.01", "--eval.tokens=16", "--train.max_steps=1", "--train.micro_batch_size=1"]
    assert train_here(write_tiny(folder, corpus), *changes, "--train.global_batch_size=1") == 0
    return folder / "run"


def own_memory() -> int:
    """Bytes of this process that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def test_a_model_is_never_in_memory_as_a_whole(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(exporting, "LOSS_TOKENS", 16)
    taken, call = [], Parts.__call__

    def called(self, name):
        part = call(self, name)
        taken.append(own_memory())
        return part

    monkeypatch.setattr(Parts, "__call__", called)
    report = exporting.export(str(run), str(tmp_path / "hf"), dtype="bf16", overwrite=False)
    assert report["folder_loss"] is not None
    assert report["parameters"] * 4 > WHOLE
    assert len(taken) > 9 * LAYERS  # the weights when they were written, and the blocks of each evaluation
    assert max(taken) - taken[0] < WHOLE / 3, "a block in fp64 is a sixteenth"
