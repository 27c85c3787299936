"""Speedups against values worked out by hand."""

import pytest

from pretrain.report.curve import Curve, common_losses, compare, speedup

SCRATCH = Curve([8.0, 6.0, 4.0, 3.0], {"tokens": [10, 20, 30, 40], "flops": [100.0, 200.0, 300.0, 400.0]})
GROWN = Curve([9.0, 7.0, 5.0, 6.0, 2.0], {"tokens": [10, 20, 30, 40, 50], "flops": [10.0, 20.0, 70.0, 170.0, 270.0]})


def test_a_speedup_is_the_ratio_of_costs_minus_1():
    """6 is first reached at 200 by one and halfway from 20 to 70 by the other; that it comes back does not count."""
    assert speedup(SCRATCH, GROWN, 6.0, "flops") == pytest.approx(200 / 45 - 1)
    assert speedup(SCRATCH, GROWN, 6.0, "tokens") == pytest.approx(20 / 25 - 1)
    assert speedup(GROWN, SCRATCH, 6.0, "flops") == pytest.approx(45 / 200 - 1)
    assert speedup(SCRATCH, SCRATCH, 5.5, "flops") == 0.0


def test_no_speedup_where_one_does_not_cross_or_lacks_the_cost():
    assert speedup(SCRATCH, GROWN, 2.5, "flops") is None
    assert speedup(SCRATCH, GROWN, 8.5, "flops") is None
    assert speedup(SCRATCH, GROWN, 6.0, "flops_dense_equivalent") is None


def test_the_grid_is_what_both_curves_cross():
    assert common_losses(SCRATCH, GROWN, 6) == pytest.approx([8.0, 7.0, 6.0, 5.0, 4.0, 3.0])
    assert common_losses(SCRATCH, Curve([3.0], {"tokens": [1]})) == [3.0]
    assert common_losses(SCRATCH, Curve([2.0, 1.0], {"tokens": [1, 2]})) == []
    for loss in common_losses(SCRATCH, GROWN, 97):
        assert speedup(SCRATCH, GROWN, loss, "flops") is not None


def test_the_lowest_loss_that_both_reach():
    """3 is reached at 400 by one and three quarters from 170 to 270 by the other."""
    found, reason = compare(SCRATCH, GROWN, "scratch", 10)
    assert reason is None
    assert (found["loss"], found["flops"]) == pytest.approx((3.0, 400 / 245 - 1))
    assert found["flops_dense_equivalent"] is None
    assert found["curve"][-1] == {key: found[key] for key in ("loss", "flops", "flops_dense_equivalent", "tokens")}


@pytest.mark.parametrize(
    ("baseline", "run", "reason"),
    [
        (SCRATCH, Curve([9.5, 9.0], {"tokens": [1, 2], "flops": [1, 2]}), "it never reaches the losses of scratch"),
        (SCRATCH, Curve([2.5, 2.0], {"tokens": [1, 2], "flops": [1, 2]}), "scratch never reaches its losses"),
        (SCRATCH, Curve([5.0], {"tokens": [1]}), "its logged steps have no train/flops"),
        (Curve([5.0], {"tokens": [1]}), GROWN, "baseline scratch have no train/flops"),
        (SCRATCH, Curve([], {"tokens": [], "flops": []}), "it is too short"),
        (Curve([], {"tokens": [], "flops": []}), GROWN, "the baseline scratch is too short"),
    ],
)
def test_a_reason_where_there_is_none(baseline, run, reason):
    found, why = compare(baseline, run, "scratch", 10)
    assert found is None
    assert reason in why
