"""Which side of a matrix is projected, and at which rate a factor that is a target moves."""

import pytest
import torch
from torch import nn

from model.build import build_model, shape_of_model
from model.config import ModelConfig
from model.linear.dense import Dense
from model.linear.low_rank import LowRank
from pretrain.optim.matrix import Matrix, projected_side
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.rules import PRESETS
from pretrain.optim.targets import find_targets

LEFT = {"ldadam"}


@pytest.mark.parametrize("name", PRESETS)
def test_each_rule_says_its_side_of_square_matrices(name):
    square = PRESETS[name].square_side
    assert square == ("left" if name in LEFT else "right")
    assert projected_side((16, 16), "std", square) == square
    assert projected_side((16, 16), "reverse_std", square) != square
    assert [projected_side(shape, "std", square) for shape in ((16, 24), (24, 16))] == ["left", "right"]
    assert [projected_side(shape, "reverse_std", square) for shape in ((16, 24), (24, 16))] == ["right", "left"]


@pytest.mark.parametrize("name", ["ldadam", "galore_adamw"])
def test_a_models_square_matrices_take_the_rules_side(name):
    config = ModelConfig(dim=16, n_layers=1, n_heads=2, ffn_dim=24, vocab_size=32, max_seq_len=16)
    fp32 = torch.float32
    model = build_model(config, Dense.Config(), seed=0, device="cpu", param_dtype=fp32, compute_dtype=fp32)
    targets = find_targets(model, PRESETS[name].Config(rank=4))
    square = {matrix.side for matrix in targets.values() if matrix.shape == (16, 16)}
    assert square == {PRESETS[name].square_side}


@pytest.mark.parametrize("name", [name for name in PRESETS if "rank" in PRESETS[name].Config.ignored])
def test_a_rule_without_a_subspace_takes_factors_of_any_rank(name):
    model_config = ModelConfig(dim=160, n_layers=1, n_heads=2, ffn_dim=160, vocab_size=32, max_seq_len=16)
    model = shape_of_model(model_config, LowRank.Config(rank=144))
    config = PRESETS[name].Config(targets=("*.A", "*.B"))
    assert config.rank < 144
    assert {matrix.shape for matrix in find_targets(model, config).values()} == {(144, 160), (160, 144)}


def moved(name, parameter, ratio, update, lr):
    """How far a target of that name goes in two steps, and the basis that its owner keeps."""
    config = PRESETS[name].Config(
        factor_lr_ratio=ratio, rank=1, lr=0.01, weight_decay=0.0, update=update, weights="bf16"
    )
    start = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    weight = nn.Parameter(start.clone())
    optimizer = MatrixOptimizer([(parameter, weight)], {parameter: Matrix(parameter, (24, 16), "right", 1)}, config, 0)
    optimizer.param_groups[0]["lr"] = lr
    for seed in range(2):
        gradient = torch.randn(24, 16, generator=torch.Generator().manual_seed(seed + 1))
        (weight * gradient).sum().backward()
        optimizer.step()
    return weight.detach() - start, optimizer.targets[0].state.get("P")


@pytest.mark.parametrize("update", ["step", "per_layer"])
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"gradnormlorp"}))
def test_b_factors_that_are_targets_take_their_own_rate(name, update):
    """Updates are in proportion to the rate: no rule here but weight normalisation reads the weight."""
    plain, basis = moved(name, "linear.B", 1.0, update, 0.001)
    faster, same = moved(name, "linear.B", 4.0, update, 0.001)
    assert (faster - 4 * plain).norm() < 1e-3 * faster.norm()
    if basis is not None:
        assert torch.equal(basis, same)
    assert torch.equal(moved(name, "linear.A", 4.0, update, 0.001)[0], moved(name, "linear.A", 1.0, update, 0.001)[0])
