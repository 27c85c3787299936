import pytest
import torch

from kernels.sparse_low_rank_linear.choice import Choice
from model.build import build_model
from model.config import ModelConfig
from model.counts import count_parameters, training_flops
from model.linear import Dense, LowRank, SparseLowRank

FP32 = torch.float32
SIZES = {
    "60M": {"dim": 512, "ffn_dim": 1376, "n_layers": 8, "n_heads": 8},
    "130M": {"dim": 768, "ffn_dim": 2048, "n_layers": 12, "n_heads": 12},
    "350M": {"dim": 1024, "ffn_dim": 2736, "n_layers": 24, "n_heads": 16},
    "1B": {"dim": 2048, "ffn_dim": 5461, "n_layers": 24, "n_heads": 32},
    "7B": {"dim": 4096, "ffn_dim": 11008, "n_layers": 32, "n_heads": 32},
}


@pytest.mark.parametrize(
    ("size", "rank", "density", "dense", "sparse", "low_rank"),
    [
        ("60M", 128, 0.03, 58.07, 43.53, 42.77),
        ("130M", 256, 0.03, 134.11, 96.55, 94.00),
        ("350M", 256, 0.03, 367.97, 194.29, 185.22),
        ("1B", 512, 0.03, 1339.08, 645.55, 609.31),
        ("7B", 1024, 0.05, 6738.42, 3144.74, 2820.94),
    ],
)
def test_parameters_are_the_papers(size, rank, density, dense, sparse, low_rank):
    """SLTrain, table 2, in millions; two digits as recomputed from its configurations."""
    config = ModelConfig(vocab_size=32000, **SIZES[size])
    counted = count_parameters(config, SparseLowRank.Config(rank=rank, density=density))
    assert counted["total"] == counted["trainable"]
    assert round(counted["total"] / 1e6, 2) == sparse
    assert round(counted["dense_equivalent"] / 1e6, 2) == dense
    assert round(count_parameters(config, LowRank.Config(rank=rank))["total"] / 1e6, 2) == low_rank


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("linear", [Dense.Config(), LowRank.Config(rank=4), SparseLowRank.Config(rank=4, density=0.1)])
def test_the_count_is_that_of_a_built_model(linear, tied):
    config = ModelConfig(
        dim=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=37, vocab_size=50, tie_embeddings=tied
    )
    model = build_model(config, linear, seed=0, device="meta", param_dtype=FP32, compute_dtype=FP32)
    assert count_parameters(config, linear)["total"] == sum(p.numel() for p in model.parameters())


def test_flops_by_hand():
    config = ModelConfig(dim=8, n_layers=2, n_heads=2, ffn_dim=12, vocab_size=10)
    tokens, matrices = 3 * 5, 4 * 64 + 3 * 96
    attention_and_head = 2 * 12 * tokens * 5 * 8 + 6 * tokens * 10 * 8
    dense = 2 * 6 * tokens * matrices + attention_and_head
    assert training_flops(config, Dense.Config(), 3, 5) == {"executed": dense, "dense_equivalent": dense}
    sparse = training_flops(config, SparseLowRank.Config(rank=4, density=0.1), 3, 5)
    assert sparse == {"executed": dense + 2 * 8 * matrices * 4, "dense_equivalent": dense}
    low_rank = 2 * 6 * tokens * 4 * (4 * 16 + 3 * 20) + attention_and_head
    assert training_flops(config, LowRank.Config(rank=4), 3, 5)["executed"] == low_rank


BUILD, DENSE = 2 * 12 * 8 * 4, 6 * 15 * 12 * 8
"""FLOPs of W or of one factor's gradient, and of the three matmuls with W."""


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, 5 * (DENSE + 4 * BUILD)),
        (Choice(), 5 * (DENSE + 4 * BUILD)),
        (Choice(fused=True), 5 * (DENSE + 4 * BUILD)),
        (Choice(keep="layer"), 5 * (DENSE + 3 * BUILD)),
        (Choice(keep="step"), 5 * (DENSE + 2 * BUILD) + BUILD),
        (Choice(keep="step", accumulate=True), 5 * DENSE + 3 * BUILD),
        (Choice(path="csr"), 5 * 6 * 15 * (4 * (12 + 8) + int(0.1 * 12 * 8))),
    ],
)
def test_flops_follow_how_a_linear_computes(choice, expected):
    """Over five micro-steps of 15 tokens, a matrix of 12 x 8 with rank 4."""
    assert SparseLowRank.training_flops(SparseLowRank.Config(rank=4, density=0.1), 8, 12, 15, choice, 5) == expected


@pytest.mark.parametrize("linear", [Dense.Config(), LowRank.Config(rank=4), SparseLowRank.Config(rank=4, density=0.1)])
def test_flops_of_several_micro_steps(linear):
    """Where nothing is kept, so many times one."""
    config = ModelConfig(dim=8, n_layers=2, n_heads=2, ffn_dim=12, vocab_size=10)
    once, five = training_flops(config, linear, 3, 5), training_flops(config, linear, 3, 5, micro_steps=5)
    assert five == {kind: 5 * flops for kind, flops in once.items()}


def test_only_the_shape_that_is_kept_costs_less():
    config, linear = ModelConfig(dim=8, n_layers=2, n_heads=2, ffn_dim=12, vocab_size=10), SparseLowRank.Config(rank=4)

    def kept(shape):
        return Choice(keep="layer") if shape == (12, 8, 4) else Choice()

    saved = training_flops(config, linear, 3, 5)["executed"] - training_flops(config, linear, 3, 5, kept)["executed"]
    assert saved == 2 * 2 * BUILD, "gate and up of two layers, W built once less each"
