"""Held-out figures: token-weighted, whole or spread evenly, and the same whatever the batch."""

import math

import pytest
import torch

from model.build import build_model
from model.config import ModelConfig
from model.linear.dense import Dense
from pretrain.data.dataset import IGNORE, TokenDataset
from pretrain.machine.distributed import World
from pretrain.using.evaluate import Evaluation, evaluate, first_rows

WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(dim=32, n_layers=1, n_heads=2, ffn_dim=48, vocab_size=320, max_seq_len=32)
    built = build_model(
        config, Dense.Config(), seed=0, device="cpu", param_dtype=torch.float32, compute_dtype=torch.float32
    )
    with torch.no_grad():
        built.lm_head.weight.mul_(50)  # far from uniform, so that rows differ
    return built


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_equals_the_definition(model, corpus, packing):
    data = TokenDataset(corpus, "val", 16, packing, 0)
    nll, targets, size = 0.0, 0, 0
    for row in range(data.n_samples):
        batch = data.batch(row, 1)
        logits = model(batch.tokens).double()
        nll += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum"
        ).item()
        targets += int((batch.targets != IGNORE).sum())
        size += data.target_bytes(row, 1)
    for micro_batch_size in (1, 3, 8):
        found = evaluate(model, data, WORLD, micro_batch_size, None)
        assert found is not None
        assert (found.targets, found.bytes) == (targets, size)
        assert found.nll == pytest.approx(nll, rel=1e-5)
    assert model.training


def test_figures():
    result = Evaluation(nll=80 * math.log(2), targets=20, bytes=40)
    assert result.bits_per_byte == pytest.approx(2.0)
    assert result.perplexity == pytest.approx(16.0)


def test_a_part_is_spread_over_the_split(corpus):
    data = TokenDataset(corpus, "val", 16, "concat", 0)
    starts = first_rows(data, 2, 16 * 2 * 5)
    assert len(starts) == 5
    assert starts[0] == 0
    assert starts[-1] > data.n_samples * 0.75
    assert max(starts) + 2 <= data.n_samples
    assert first_rows(data, 2, 10**9) == first_rows(data, 2, None) == list(range(0, data.n_samples, 2))
