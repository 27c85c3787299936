"""Logits and text of transformers, with its cache, from an exported folder: ours, in fp32 and in bf16."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.hf import load_folder
from model.linear import Dense
from model.transformer import Transformer
from pretrain.checkpoint.read import load_model, open_checkpoint
from pretrain.cli import main
from pretrain.machine.distributed import World
from pretrain.using.generate import continue_ids

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("ask_transformers_generate.py")


@pytest.fixture
def tokens(tmp_path):
    tokens = torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(0))
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    return tokens


def test_fp32(trained, exported, tokens, outside, tmp_path):
    outside(SCRIPT, exported, "float32", tmp_path, needs=("transformers",))
    theirs = load_file(tmp_path / "answer.safetensors")
    model = load_model(open_checkpoint(trained), torch.device("cpu"), compute_dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs["logits"], model(tokens), rtol=1e-4, atol=1e-4)
    begin, alone = tokens[0].tolist(), World(0, 1, torch.device("cpu"))
    ours = continue_ids(model, begin, 24, None, lambda logits: int(logits.argmax()), alone)
    assert theirs["ids"].tolist()[-24:] == ours[-24:]
    assert len(set(ours[-24:])) > 3  # no single token over and over, which would show little


def test_bf16(trained, tokens, outside, tmp_path):
    """Both compute in bf16, so each is off by its rounding: theirs may be by no more than ours."""
    folder = tmp_path / "bf16"
    assert main(["export", str(trained), "--out", str(folder), "--dtype", "bf16", "--no-check"]) == 0
    outside(SCRIPT, folder, "bfloat16", tmp_path, needs=("transformers",))
    config, weights = load_folder(folder)
    state, logits = {name: weight.float() for name, weight in weights}, {}
    for dtype in (torch.float32, torch.bfloat16):
        model = Transformer(config, Dense.Config(), dtype).eval()
        model.load_state_dict(state)
        with torch.no_grad():
            logits[dtype] = model(tokens)
    exact = logits[torch.float32]
    ours = (logits[torch.bfloat16] - exact).square().mean().sqrt()
    theirs = (load_file(tmp_path / "answer.safetensors")["logits"] - exact).square().mean().sqrt()
    assert 0 < theirs < 2 * ours < 0.05 * exact.std()
