"""A model that is given a text token by token says of every next one what it says when given all at once."""

import pytest
import torch

from model.build import build_model
from model.config import ModelConfig
from model.kv_cache import KVCache
from model.linear import CoLA, Dense, LowRank, Sparse, SparseLowRank
from model.linear.int8 import Int8Linear

SHAPE = ModelConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=50, max_seq_len=24)
CPU = torch.device("cpu")
BLOCK = SparseLowRank.Config(rank=4, alpha=4.0, density=0.5, support="block")
LINEARS = {
    "dense": (Dense.Config(), False),
    "int8": (Dense.Config(), True),
    "low_rank": (LowRank.Config(rank=4, alpha=4.0), False),
    "element": (SparseLowRank.Config(rank=4, alpha=4.0, density=0.1), False),
    "block": (BLOCK, False),
    "sparse": (Sparse.Config(density=0.3), False),
    "cola": (CoLA.Config(rank=4), False),
}


def build(linear=LINEARS["element"][0], int8=False, compute_dtype=torch.float32, **changes):
    model = build_model(
        SHAPE.model_copy(update={"init_std": 0.1, **changes}),
        linear,
        seed=0,
        device="cpu",
        param_dtype=torch.float32,
        compute_dtype=compute_dtype,
        int8=int8,
    )
    with torch.no_grad():  # B starts at zero; a trained model's does not
        for name, p in model.named_parameters():
            if not p.any():
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def token_ids(batch=2, length=20):
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(0))


def by_token(model, tokens, prompt, cache):
    """Logits after the first `prompt` tokens, and after each that follows. [B, T - prompt + 1, V]."""
    with torch.no_grad():
        logits = [model(tokens[:, :prompt], None, cache)]
        logits += [model(tokens[:, i : i + 1], None, cache) for i in range(prompt, tokens.shape[1])]
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("kind", LINEARS)
@pytest.mark.parametrize("prompt", [1, 7])
def test_logits_are_those_of_the_whole_text(kind, prompt):
    model, tokens = build(*LINEARS[kind]), token_ids()
    assert isinstance(model.layers[0].attention.q_proj, Int8Linear) == (kind == "int8")
    cache = KVCache(SHAPE, 2, 20, torch.float32, CPU)
    with torch.no_grad():
        whole = model(tokens)
    found = by_token(model, tokens, prompt, cache)
    assert cache.position == 20
    assert whole.std() > 0.1
    torch.testing.assert_close(found, whole[:, prompt - 1 :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{"n_kv_heads": 0}, {"n_kv_heads": 1}, {"head_dim": 6}, {"tie_embeddings": True}])
def test_other_shapes(changes):
    model, tokens = build(**changes), token_ids()
    with torch.no_grad():
        whole = model(tokens)
    found = by_token(model, tokens, 3, KVCache(model.config, 2, 20, torch.float32, CPU))
    torch.testing.assert_close(found, whole[:, 2:], rtol=0, atol=1e-5)


def test_bf16_stays_as_close_as_bf16_is():
    model, tokens = build(Dense.Config(), compute_dtype=torch.bfloat16, init_std=0.05), token_ids()
    with torch.no_grad():
        whole = model(tokens)
    found = by_token(model, tokens, 3, KVCache(SHAPE, 2, 20, torch.bfloat16, CPU))
    torch.testing.assert_close(found, whole[:, 2:], rtol=0, atol=0.05 * whole.abs().max().item())


def test_a_cleared_cache_remembers_nothing():
    model, tokens = build(), token_ids()
    cache = KVCache(SHAPE, 2, 20, torch.float32, CPU)
    first = by_token(model, tokens, 5, cache)
    cache.clear()
    assert cache.position == 0
    assert torch.equal(by_token(model, tokens, 5, cache), first)


def test_several_tokens_go_into_an_empty_cache_alone():
    model, tokens = build(), token_ids()
    cache = KVCache(SHAPE, 2, 20, torch.float32, CPU)
    by_token(model, tokens[:, :5], 5, cache)
    with pytest.raises(ValueError, match="2 tokens at once after 5 others"):
        by_token(model, tokens[:, 5:7], 2, cache)
