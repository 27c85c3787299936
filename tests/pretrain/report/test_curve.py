"""Smoothing and first crossings against values worked out by hand."""

import pytest

from pretrain.report.curve import Curve, default_window, first_crossing, smooth


def curve(tokens, losses):
    return Curve(list(losses), {"tokens": list(tokens), "flops": [100.0 * t for t in tokens]})


def test_a_mean_is_over_what_lies_in_its_window():
    """Window 20 at 30 tokens holds 20 and 30, not 10: it is open on the left. At 45 it holds 30 and 45."""
    smoothed = smooth(curve([10, 20, 30, 45], [8.0, 6.0, 1.0, 3.0]), 20)
    assert smoothed.losses == [3.5, 2.0]
    assert smoothed.tokens == [30, 45]
    assert smoothed.costs["flops"] == [3000.0, 4500.0]


def test_a_window_is_in_tokens_where_points_are_uneven():
    assert smooth(curve([1, 2, 3, 4, 10, 11], [9.0, 7.0, 5.0, 3.0, 4.0, 2.0]), 3).losses == [5.0, 4.0, 3.0]


def test_points_whose_window_is_not_full_are_left_out():
    assert smooth(curve([10, 20, 30], [3.0, 2.0, 1.0]), 20).tokens == [30]
    assert smooth(curve([10, 20, 30], [3.0, 2.0, 1.0]), 21).losses == []


def test_a_log_that_begins_late_has_no_full_window_at_its_begin():
    """A run that goes on from a checkpoint grown at 1000 tokens."""
    assert smooth(curve([1010, 1020, 1030], [9.0, 4.0, 2.0]), 20).losses == [3.0]


def test_smoothing_keeps_a_constant():
    assert smooth(curve(range(1, 50), [2.1] * 49), 7).losses == pytest.approx([2.1] * 42)


def test_a_default_window_is_2_percent_of_the_shortest_run():
    long, short = (curve(range(1, count + 1), [1.0] * count) for count in (2000, 1000))
    assert default_window([long, short]) == 20


def test_a_default_window_holds_8_logged_steps_of_every_run():
    """The widest 8 points are 10 apart from 20 to 90, so their window begins at 10."""
    dense, wide = curve(range(1, 91), [1.0] * 90), curve([1, *range(10, 100, 10)], [1.0] * 10)
    assert default_window([dense, wide]) == 80
    assert default_window([dense]) == 8


def test_a_run_of_8_steps_is_not_smoothed():
    for count in (1, 8):
        short = curve(range(1, count + 1), [1.0] * count)
        assert smooth(short, default_window([short])).losses == []
    nine = curve(range(1, 10), [1.0] * 9)
    assert smooth(nine, default_window([nine])).tokens == [9]


def test_a_crossing_is_linear_between_points():
    assert first_crossing([100.0, 200.0, 300.0], [5.0, 4.0, 2.0], 3.5) == 225.0


def test_a_crossing_at_a_point():
    assert first_crossing([100.0, 200.0, 300.0], [5.0, 4.0, 2.0], 4.0) == 200.0
    assert first_crossing([100.0, 200.0, 300.0], [5.0, 4.0, 2.0], 5.0) == 100.0
    assert first_crossing([100.0, 200.0, 300.0], [5.0, 4.0, 2.0], 2.0) == 300.0


def test_the_first_of_several_crossings_counts():
    """Down through 4 at 150, up again, down again at 350."""
    assert first_crossing([100.0, 200.0, 300.0, 400.0], [5.0, 3.0, 5.0, 3.0], 4.0) == 150.0


def test_a_curve_that_never_crosses():
    assert first_crossing([100.0, 200.0], [5.0, 4.0], 3.9) is None
    assert first_crossing([], [], 3.9) is None


def test_a_curve_that_begins_below_has_no_known_crossing():
    assert first_crossing([100.0, 200.0, 300.0], [3.0, 5.0, 3.0], 4.0) is None
