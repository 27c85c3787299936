import pytest

from pretrain.optim.exchange import share_out


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_work_is_shared_out_evenly(size):
    costs = [32000.0 * 512] * 2 + [float(rows * cols) for rows, cols in [(512, 512)] * 32 + [(1376, 512)] * 24]
    owners = share_out(costs, size)
    loads = [sum(c for c, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(size)]
    assert sum(loads) == sum(costs)
    assert max(loads) <= max(max(costs), 4 / 3 * sum(costs) / size)
    assert owners == share_out(costs, size)


def test_more_ranks_than_work():
    assert sorted(share_out([3.0, 2.0], 4)) == [0, 1]
