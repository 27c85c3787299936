"""Dense weights as factors and sparse entries, against the same in float64 by the textbook."""

import pytest
import torch

from model.linear import LowRank, Sparse, SparseLowRank, build_linear
from model.linear.from_dense import approximate

SEED, NAME = 3, "layers.0.attention.q_proj"


def weight(n_out=48, n_in=80):
    return torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def best(matrix, rank):
    """The nearest matrix of this rank, in float64."""
    U, s, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


def filled(config, dense, support="random"):
    linear = build_linear(config, dense.shape[1], dense.shape[0], NAME)
    return linear, approximate(linear, dense.float(), SEED, support)


def error(linear, dense):
    return float((linear.dense_weight().double() - dense).norm() / dense.norm())


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (48, 48)])
def test_factors_are_the_truncated_svd_shared_evenly(shape):
    dense = weight(*shape)
    linear, found = filled(LowRank.Config(rank=7, alpha=3.0), dense)
    expected = best(dense, 7)
    torch.testing.assert_close(linear.dense_weight().double(), expected, rtol=0, atol=1e-4)  # the 8th is near
    assert found.error == found.low_rank_error == pytest.approx(float((dense - expected).norm() / dense.norm()), 1e-5)
    assert (found.rank, found.entries) == (7, 0)
    spectra = torch.linalg.svdvals(linear.B), torch.linalg.svdvals(linear.A)
    torch.testing.assert_close(*spectra)
    torch.testing.assert_close(spectra[0].square() * 3 / 7, torch.linalg.svdvals(dense)[:7].float())


def test_a_drawn_support_is_the_one_that_training_draws_and_keeps_the_residual_there():
    dense = weight()
    config = SparseLowRank.Config(rank=5, alpha=2.0, density=0.1)
    linear, found = filled(config, dense)
    fresh = build_linear(config, 80, 48, NAME)
    fresh.reset_parameters(SEED)
    assert torch.equal(linear.support.loc, fresh.support.loc)
    assert torch.equal(linear.support.tile_ptr, fresh.support.tile_ptr)
    there = linear.support.flat().long()
    left = (linear.dense_weight().double() - dense).flatten()
    assert left[there].abs().max() < 1e-5
    expected = dense - best(dense, 5)
    expected.view(-1)[there] = 0
    assert found.error == pytest.approx(float(expected.norm() / dense.norm()), 1e-5)
    assert error(linear, dense) == pytest.approx(found.error, 1e-5)
    assert found.entries == 384 == len(there)


def test_a_chosen_support_is_where_the_factors_miss_most():
    dense = weight()
    linear, found = filled(SparseLowRank.Config(rank=5, density=0.1), dense, "magnitude")
    rest = (dense - best(dense, 5)).abs().flatten()
    there = linear.support.flat().long()
    linear.support.check()
    outside = rest.clone()
    outside[there] = 0
    assert rest[there].min() > outside.max() - 1e-5
    assert found.error == pytest.approx(float(outside.norm() / dense.norm()), 1e-5)
    assert found.error < filled(SparseLowRank.Config(rank=5, density=0.1), dense)[1].error


def test_drawn_blocks_keep_the_residual():
    dense, config = weight(64, 96), SparseLowRank.Config(rank=5, density=0.34, support="block")
    linear, found = filled(config, dense)
    left = linear.dense_weight().double() - dense
    assert int((left.abs() < 1e-5).sum()) >= found.entries
    assert error(linear, dense) == pytest.approx(found.error, 1e-5)
    assert found.error < found.low_rank_error


def test_a_zero_weight_has_no_error():
    linear, found = filled(SparseLowRank.Config(rank=5, density=0.1), torch.zeros(48, 80, dtype=torch.float64))
    assert (found.error, found.low_rank_error) == (0, 0)
    assert not linear.dense_weight().any()


@pytest.mark.parametrize("support", ["random", "magnitude"])
def test_sparse_entries_alone_are_the_weights_own(support):
    dense, config = weight(48, 80), Sparse.Config(density=0.25)
    linear, found = filled(config, dense, support)
    kept = linear.dense_weight().double()
    assert (kept != 0).sum() == 960 == found.entries
    torch.testing.assert_close(kept[kept != 0], dense[kept != 0], rtol=1e-6, atol=0)
    if support == "magnitude":
        assert dense[kept != 0].abs().min() >= dense[kept == 0].abs().max()
    assert (found.rank, found.low_rank_error) == (0, pytest.approx(1))
    assert found.error == pytest.approx(error(linear, dense), rel=1e-4)
