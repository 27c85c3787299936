import pytest
import torch

from model.errors import UserError
from model.linear import SparseLowRank, build_linear
from model.linear.support.element import ElementSparse, draw_positions


@pytest.mark.parametrize(
    ("size", "numel"), [(0, 10), (1, 1), (3, 100), (50, 100), (97, 100), (100, 100), (5000, 99991)]
)
def test_support_is_sorted_unique_int32_and_complete(size, numel):
    support = draw_positions(size, numel, 0, "q")
    assert support.dtype == torch.int32
    assert support.shape == (size,)
    assert (support.diff() > 0).all()
    assert ((support >= 0) & (support < numel)).all()
    assert torch.equal(support, draw_positions(size, numel, 0, "q"))


def test_supports_of_other_names_and_seeds_are_independent():
    one, name, seed = (
        draw_positions(500, 1000, 0, "q"),
        draw_positions(500, 1000, 0, "k"),
        draw_positions(500, 1000, 1, "q"),
    )
    for other in (name, seed):
        common = torch.isin(one, other).sum().item()
        assert 200 < common < 300  # 250 +- 8 for independent halves


@pytest.mark.parametrize("size", [3, 9])
def test_every_position_and_pair_is_equally_likely(size):
    """Sizes below and above one half of 12, because the second is drawn by its complement."""
    draws, numel = 3000, 12
    chosen = torch.zeros(draws, numel)
    for i in range(draws):
        chosen[i, draw_positions(size, numel, i, "q").long()] = 1
    together = chosen.T @ chosen / draws
    p, pair = size / numel, size * (size - 1) / (numel * (numel - 1))
    off_diagonal = together[~torch.eye(numel, dtype=torch.bool)]
    assert (together.diagonal() - p).abs().max() < 5 * (p * (1 - p) / draws) ** 0.5
    assert (off_diagonal - pair).abs().max() < 5 * (pair * (1 - pair) / draws) ** 0.5


def test_initial_values_are_the_papers():
    linear = build_linear(SparseLowRank.Config(rank=32, alpha=8.0, density=0.05), 400, 300, "q")
    linear.reset_parameters(0)
    bound = 400**-0.5
    assert linear.scale == 0.25
    assert not linear.B.any()
    assert linear.values.numel() == ElementSparse.count(0.05, 400, 300) == 6000
    for tensor in (linear.A, linear.values):
        assert 0.99 * bound < tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert abs(tensor.mean().item()) < 0.03 * bound
    dense = linear.dense_weight()
    assert torch.equal(dense.flatten().nonzero().flatten().int(), linear.support.flat().sort().values)


def test_support_is_saved_and_is_no_parameter():
    linear = build_linear(SparseLowRank.Config(rank=2, density=0.1), 20, 30, "q")
    assert set(linear.state_dict()) == {"A", "B", "values", "support.loc", "support.tile_ptr"}
    assert {name for name, _ in linear.named_parameters()} == {"A", "B", "values"}
    assert linear.to(torch.bfloat16).support.loc.dtype == torch.uint16


def test_density_without_entries_is_refused():
    with pytest.raises(UserError, match=r"linear\.density 0\.001 .*v_proj"):
        build_linear(SparseLowRank.Config(rank=2, density=0.001), 20, 30, "layers.0.attention.v_proj")


def test_a_matrix_whose_padded_rows_kernels_cannot_address_is_refused():
    with pytest.raises(UserError, match=r"^q: a 65536 x 32767 matrix, .* has 2\^31 elements or more"):
        ElementSparse(1e-6, 32767, 65536, "q.support")
