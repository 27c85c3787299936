import math

import pytest
import torch

from model.spectrum import (
    choose_ranks,
    effective_rank,
    intruder_dimensions,
    largest_rank,
    normalised,
    product_singular_values,
    ranks_for_reduction,
    reduction,
    singular_values,
    stable_rank,
)

F64 = torch.float64


def matrix(m, n, values, seed=0):
    """A float64 matrix [m, n] with these singular values."""
    random = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(side, len(values), generator=random, dtype=F64)).Q for side in (m, n))
    return U @ torch.diag(torch.tensor(values, dtype=F64)) @ V.t()


def test_singular_values_are_exact_and_all_there():
    W = matrix(7, 5, [4.0, 3.0, 1.0, 0.5, 0.25])
    torch.testing.assert_close(singular_values(W), torch.tensor([4.0, 3.0, 1.0, 0.5, 0.25], dtype=F64))
    assert singular_values(W.bfloat16()).dtype == torch.float32
    W[3, 2] = math.inf
    assert singular_values(W).isnan().sum() == 5


@pytest.mark.parametrize(("m", "r", "n"), [(9, 3, 6), (4, 4, 8), (3, 5, 8)])
def test_those_of_a_product_need_no_product(m, r, n):
    random = torch.Generator().manual_seed(1)
    B, A = torch.randn(m, r, generator=random, dtype=F64), torch.randn(r, n, generator=random, dtype=F64)
    whole = singular_values(0.5 * B @ A)
    found = product_singular_values(B, A, 0.5)
    torch.testing.assert_close(found, whole[: len(found)], rtol=1e-12, atol=1e-12)
    assert whole[len(found) :].abs().max() < 1e-12 if len(found) < len(whole) else True
    B[0, 0] = math.nan
    assert product_singular_values(B, A).isnan().all()


def test_stable_and_effective_rank_of_known_spectra():
    W = matrix(6, 8, [2.0, 2.0, 1.0])
    assert stable_rank(singular_values(W)) == pytest.approx(W.square().sum().item() / 4)  # ||W||_F^2 / ||W||_2^2
    parts = [0.4, 0.4, 0.2]
    assert effective_rank(singular_values(W)) == pytest.approx(math.exp(-sum(p * math.log(p) for p in parts)))
    assert effective_rank(torch.ones(5)) == pytest.approx(5) == stable_rank(torch.ones(5))
    zero = torch.zeros(3)
    assert stable_rank(zero) == effective_rank(zero) == 0
    assert all(math.isnan(figure(torch.tensor([math.nan]))) for figure in (effective_rank, stable_rank))


def test_a_direction_unlike_all_old_ones_is_an_intruder():
    old = torch.diag(torch.linspace(64, 1, 64))  # its left singular vectors are the axes
    assert intruder_dimensions(old, old) == 0
    assert intruder_dimensions(-3 * old, old) == 0, "signs and lengths mean nothing"
    even = torch.full((64, 1), 1 / 8)  # a cosine of 1 / 8 with every axis
    assert intruder_dimensions(old + 1000 * even @ even.t(), old) == 1
    assert intruder_dimensions(old + 1000 * even @ even.t(), old, epsilon=0.1) == 0
    swapped = torch.diag(torch.linspace(1, 64, 64))
    assert intruder_dimensions(swapped, old) == 0, "another order is none of another direction"


def test_welore_keeps_what_lies_above_one_threshold_of_all():
    spectra = {"steep": torch.tensor([8.0, 1.0, 0.5, 0.0]), "flat": torch.tensor([8.0, 7.0, 6.0, 0.0])}
    torch.testing.assert_close(normalised(spectra["steep"]), torch.tensor([1, 0.125, 0.0625, 0], dtype=F64))
    found = ranks_for_reduction(spectra, 0.5)
    assert found.ranks == {"steep": 1, "flat": 3}
    assert found.reduction == 0.5 == reduction(spectra, found.ranks)
    # The lowest such threshold: just above the last one left out.
    assert 0.125 < found.threshold < 0.125 + 1e-12
    assert ranks_for_reduction(spectra, 0.0).ranks == {"steep": 4, "flat": 4}
    assert ranks_for_reduction(spectra, 0.9) is None  # each matrix keeps one
    assert ranks_for_reduction({"equal": torch.ones(4)}, 0.5) is None  # nothing stands out, nothing is left out


def test_no_rank_is_above_its_cap_and_factors_never_exceed_the_dense_matrix():
    for n_out, n_in, entries in ((8, 8, 0), (8, 24, 0), (5, 7, 9), (3, 3, 8)):
        rank = largest_rank(n_out, n_in, entries)
        assert rank * (n_out + n_in) + entries <= n_out * n_in or rank == 1
        assert (rank + 1) * (n_out + n_in) + entries > n_out * n_in
    spectra = {"steep": torch.tensor([8.0, 1.0, 0.5, 0.0]), "flat": torch.tensor([8.0, 7.0, 6.0, 0.0])}
    caps = {name: largest_rank(4, 4) for name in spectra}
    assert ranks_for_reduction(spectra, 0.1, caps).ranks == {"steep": 2, "flat": 2}
    found = choose_ranks(spectra, lambda ranks: sum(rank * 8 for rank in ranks.values()) <= 24, caps)
    assert found.ranks == {"steep": 1, "flat": 2}


def test_ranks_are_rounded_down_to_multiples():
    spectra = {f"{length}": torch.linspace(1, 0.1, length) for length in (3, 4, 9, 17)}
    assert ranks_for_reduction(spectra, 0.0, multiple=4).ranks == {"3": 3, "4": 4, "9": 8, "17": 16}
    assert ranks_for_reduction(spectra, 0.2, multiple=4).reduction >= 0.2
