"""Activations in host memory: the same run to the last bit, to be paused and gone on with on either side."""

import pytest
import torch
from support import logged, tensor_hashes, train_here

from model import offload
from model.errors import UserError
from pretrain.config import load_config
from pretrain.config.write import config_hash
from pretrain.loop.build import build

THERE, HERE = "--train.offload_activations=true", "--train.offload_activations=false"
EVERY = "--train.checkpoint_every_layers=1"
PER_LAYER = ["--optimizer.update=per_layer", "--train.grad_clip=0.0", "--train.global_batch_size=2"]
KINDS = {
    "stage 0, per layer": ["--optimizer.name=adamw8bit", *PER_LAYER],
    "stage 0, sums": ["--optimizer.name=adamw8bit", "--kernels.keep_weight=step", "--kernels.sum_gradients=dense"],
    "stage 1": ["--parallel.zero_stage=1"],
    "stage 2": ["--parallel.zero_stage=2", "--train.dtype=bf16"],
    "stage 3": ["--parallel.zero_stage=3"],
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "stage 3" else ()) for kind in KINDS]
)
def test_no_bit_changes_wherever_they_wait(tiny, tmp_path, monkeypatch, kind):
    sent = []
    monkeypatch.setattr(offload.Kept, "send", lambda kept, send=offload.Kept.send: sent.append(kept) or send(kept))
    runs = {name: tmp_path / name for name in ("plain", "changed")}
    train_here(tiny, *KINDS[kind], EVERY, HERE, f"--run.dir={runs['plain']}", "--train.max_steps=3")
    assert not sent
    for last, where in ((1, THERE), (2, HERE), (3, THERE)):
        train_here(tiny, *KINDS[kind], EVERY, where, f"--run.dir={runs['changed']}", f"--train.max_steps={last}")
    assert sent
    assert logged(runs["plain"]) == logged(runs["changed"])
    assert tensor_hashes(runs["plain"], 3) == tensor_hashes(runs["changed"], 3)


def test_it_needs_blocks_that_are_recomputed():
    with pytest.raises(UserError, match=r"none is recomputed: set train\.checkpoint_every_layers = 1, or offload_"):
        load_config(None, [THERE])


def test_it_decides_nothing_of_what_a_run_computes():
    one, other = (load_config(None, [EVERY, where]) for where in (THERE, HERE))
    assert config_hash(one) == config_hash(other)


def test_the_model_is_built_with_it(tiny):
    for where, found in ((THERE, True), (HERE, False)):
        model = build(load_config(tiny, [EVERY, where]), torch.device("cpu"))
        assert (model.offload is not None) == found
