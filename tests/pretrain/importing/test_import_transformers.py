"""Random models of transformers, imported and exported again: the same logits on both ways."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.checkpoint.read import load_model, open_checkpoint
from pretrain.cli import main

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SHAPES = ("gqa", "tied", "llama3", "bf16", "head_width", "mistral", "qwen2")


def ask(what, root):
    """Another process and working directory: a library that transformers looks for is called `kernels` too."""
    script = Path(__file__).with_name("with_transformers.py")
    command = [sys.executable, "-P", script, what, root]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`made`, folders of transformers; `in`, their imports; `out`, exports of those, which transformers has read."""
    root = tmp_path_factory.mktemp("transformers")
    for name in ("made", "out"):
        (root / name).mkdir()
        tokens = torch.randint(384, (2, 100), generator=torch.Generator().manual_seed(0))
        save_file({"tokens": tokens}, root / name / "tokens.safetensors")
    ask("make", root / "made")
    for shape in SHAPES:
        assert len(list((root / "made" / shape).glob("model-*.safetensors"))) > 1
        assert main(["import", str(root / "made" / shape), "--out", str(root / "in" / shape)]) == 0
        dtype = "bf16" if shape == "bf16" else "fp32"
        command = ["export", str(root / "in" / shape), "--dtype", dtype, "--no-check", "--out"]
        assert main([*command, str(root / "out" / shape)]) == 0
    ask("read", root / "out")
    return root


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_equal_on_both_ways(root, shape):
    tokens = load_file(root / "made" / "tokens.safetensors")["tokens"]
    theirs, again = (load_file(root / where / shape / "logits.answer")["logits"] for where in ("made", "out"))
    model = load_model(open_checkpoint(root / "in" / shape), torch.device("cpu"), compute_dtype=torch.float32)
    with torch.no_grad():
        ours = model(tokens)
    assert theirs.std() > 0.3
    assert (ours - theirs).abs().max() < 1e-5
    assert (again - theirs).abs().max() < 1e-5
