"""permute: a bijection of every range, keyed by its seed."""

import numpy as np
import pytest

from pretrain.data.dataset import permute


@pytest.mark.parametrize("n", [*range(1, 301), 4096, 65_537, 1_000_003])
def test_bijection(n):
    assert np.array_equal(np.sort(permute(np.arange(n), n, seed=n)), np.arange(n))


def test_one_index_alone_equals_the_same_index_among_all():
    whole = permute(np.arange(1000), 1000, seed=5)
    assert [int(permute(np.array([i]), 1000, seed=5)[0]) for i in range(1000)] == whole.tolist()


def test_seeds_give_unrelated_orders():
    orders = np.stack([permute(np.arange(1000), 1000, seed=s) for s in range(20)])
    agreements = [(orders[i] == orders[j]).sum() for i in range(20) for j in range(i)]
    # Two random permutations agree in one place on average; 190 pairs within 4 standard errors of that.
    assert abs(np.mean(agreements) - 1) < 4 / 190**0.5


def test_every_place_is_equally_likely():
    firsts = np.bincount([int(permute(np.array([0]), 10, seed=s)[0]) for s in range(2000)], minlength=10)
    chi_square = ((firsts - 200) ** 2 / 200).sum()
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001


def test_indices_far_beyond_32_bits():
    n = 10**12 + 39
    out = permute(np.arange(n - 1000, n), n, seed=1)
    assert out.min() >= 0
    assert out.max() < n
    assert len(np.unique(out)) == 1000
