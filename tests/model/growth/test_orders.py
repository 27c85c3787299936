"""The published index maps, written out, and the numbers for which an order has none."""

import pytest

from model.errors import UserError
from model.growth.operators import ORDERS

MAPS = [
    ("stack", 6, 24, [0, 1, 2, 3, 4, 5] * 4),
    ("stack", 3, 6, [0, 1, 2, 0, 1, 2]),
    ("interleave", 3, 6, [0, 0, 1, 1, 2, 2]),
    ("interleave", 2, 8, [0, 0, 0, 0, 1, 1, 1, 1]),
    ("solar", 32, 48, [*range(24), *range(8, 32)]),  # SOLAR 10.7B: n = 8
    ("solar", 4, 6, [0, 1, 2, 1, 2, 3]),
    ("gradual", 4, 6, [0, 1, 2, 3, 2, 3]),
    ("gradual", 3, 6, [0, 1, 2, 0, 1, 2]),
    ("midas", 6, 8, [0, 1, 2, 3, 2, 3, 4, 5]),  # 3 groups: f1 f2 f2 f3
    ("midas", 4, 5, [0, 1, 1, 2, 3]),
    ("midas", 2, 4, [0, 1, 0, 1]),
]


@pytest.mark.parametrize(("order", "small", "large", "expected"), MAPS)
def test_maps_are_the_published_ones(order, small, large, expected):
    assert list(ORDERS[order](small, large)) == expected


def test_every_order_has_a_map_here():
    assert {row[0] for row in MAPS} == set(ORDERS)


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_depth_is_the_same_model(order):
    assert list(ORDERS[order](6, 6)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("order", ORDERS)
def test_fewer_layers_are_refused(order):
    with pytest.raises(UserError, match=r"^growth\.factor: 6 layers cannot grow to 3, which is fewer"):
        ORDERS[order](6, 3)


@pytest.mark.parametrize(
    ("order", "large", "needs"),
    [
        ("stack", 8, "a multiple of 6"),
        ("interleave", 8, "a multiple of 6"),
        ("solar", 7, "an even number of at most 12"),
        ("solar", 14, "an even number of at most 12"),
        ("gradual", 13, "at most 12"),
        ("midas", 10, "more than 6 by a divisor of it"),
    ],
)
def test_depths_without_a_map_are_refused(order, large, needs):
    with pytest.raises(
        UserError, match=rf"^growth\.factor: order '{order}' cannot grow 6 layers to {large}.* {needs}$"
    ):
        ORDERS[order](6, large)
