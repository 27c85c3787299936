"""Sparse Spectral Training against dense matrices in float64: its map, its gradients, its samples."""

import pytest
import torch

from model.linear import Dense, Sst, build_linear

IN, OUT, RANK, Q = 12, 20, 4, 12
EVERY = 5


def make(name="q", resample_every=EVERY):
    linear = build_linear(Sst.Config(rank=RANK, resample_every=resample_every), IN, OUT, name)
    linear.reset_parameters(0)
    return linear


def vectors(linear):
    """All of them, (out, q) and (in, q), in float64."""
    U, V, active = linear.rest_U.double(), linear.rest_V.double(), linear.active.long()
    return U.index_copy(1, active, linear.U.detach().double()), V.index_copy(1, active, linear.V.detach().double())


def moved(linear, seed=0):
    """As after an update, and what is made of it: vectors not of length one, singular values below zero."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)
        linear.s[3] = -0.1
    return linear


def test_it_begins_as_a_dense_linear_decomposed():
    linear, dense = make(), build_linear(Dense.Config(), IN, OUT, "q")
    dense.reset_parameters(0)
    torch.testing.assert_close(linear.dense_weight(), dense.weight.detach())
    torch.testing.assert_close(linear.s.detach(), torch.linalg.svdvals(dense.weight.detach()))
    assert not linear.rest_U[:, linear.active.long()].any()
    assert len(set(linear.active.tolist())) == RANK


def test_output_and_gradients_are_the_equations_in_float64():
    linear = moved(make())
    x = torch.randn(3, 5, IN, generator=torch.Generator().manual_seed(1), requires_grad=True)
    dy = torch.randn(3, 5, OUT, generator=torch.Generator().manual_seed(2))
    y = linear(x)
    y.backward(dy)
    U, V = vectors(linear)
    W = U @ linear.s.detach().double().diag() @ V.T
    G = dy.double().flatten(0, 1).T @ x.detach().double().flatten(0, 1)
    active = linear.active.long()
    torch.testing.assert_close(y.double(), x.detach().double() @ W.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear.dense_weight().double(), W, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), dy.double() @ W, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear.s.grad.double(), (U.T @ G @ V).diagonal(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear.U.grad.double(), (G @ V)[:, active], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear.V.grad.double(), (G.T @ U)[:, active], rtol=1e-4, atol=1e-4)


def test_after_every_update_values_are_not_negative_and_vectors_of_length_one():
    linear = moved(make())
    before = linear.s.detach().clone()
    assert linear.merge(0, 1) == {}
    assert torch.equal(linear.s.detach(), before.clamp(min=0))
    for parameter in (linear.U, linear.V):
        torch.testing.assert_close(parameter.detach().norm(dim=0), torch.ones(RANK))


def test_other_pairs_become_active_and_those_that_stay_keep_place_and_moments():
    linear, stayed = make(), 0
    for index in range(1, 13):
        moved(linear, index).merge(0, index * EVERY + 1)
        U, V = vectors(linear)
        old, s = linear.active.clone(), linear.s.detach().clone()
        if index * EVERY % linear.decompose_every == 0:
            continue
        resets = linear.merge(0, index * EVERY)
        assert resets.keys() == {"U", "V"}
        for one, other in zip(vectors(linear), (U, V), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        assert torch.equal(linear.s.detach(), s)
        kept = linear.active == old
        assert set(old.tolist()) & set(linear.active.tolist()) == set(old[kept].tolist())
        stayed += int(kept.sum())
        values = torch.rand(OUT, RANK, generator=torch.Generator().manual_seed(0))
        assert torch.equal(resets["U"]("exp_avg", values), values * kept)
        squares = resets["U"]("exp_avg_sq", values)
        assert torch.equal(squares[:, kept], values[:, kept])
        assert (squares[:, ~kept] == values.mean()).all()
    assert stayed


def test_every_round_ends_with_a_decomposition():
    linear = make()
    assert linear.decompose_every == EVERY * (Q // RANK)
    moved(linear).merge(0, 1)
    weight = linear.dense_weight()
    assert linear.merge(0, linear.decompose_every).keys() == {"s", "U", "V"}
    torch.testing.assert_close(linear.dense_weight(), weight, rtol=1e-5, atol=1e-5)
    for found in vectors(linear):
        torch.testing.assert_close(found.T @ found, torch.eye(Q, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(linear.s.detach(), torch.linalg.svdvals(weight), rtol=1e-5, atol=1e-5)


def test_large_values_are_drawn_more_often_by_the_papers_chances():
    linear, counts = make(), torch.zeros(Q)
    linear.active.resize_(1)  # of one pair the chances can be counted
    s = torch.arange(Q, dtype=torch.float32)
    for index in range(4000):
        counts[linear._sample(s, 0, index)] += 1
    assert counts.div(4000).tolist() == pytest.approx(((1 / Q + s / s.sum()) / 2).tolist(), abs=0.025)
    assert len(linear._sample(torch.zeros(Q), 0, 0)) == 1
