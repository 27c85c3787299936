"""The verdict on a difference of logits, where the rounding of the same weights is known."""

import pytest
import torch
from torch import Tensor

from pretrain.using.logit_check import Difference, Exact

LOGITS = torch.randn(2, 8, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOGITS /= LOGITS.std()


def allowed(found: Tensor, rms: float, worst: float) -> bool:
    exact = Exact(LOGITS, Difference(rms, worst, ""))
    return exact.allows(exact.difference(found))


def off_everywhere(size: float) -> Tensor:
    return LOGITS + size


def off_once(size: float) -> Tensor:
    found = LOGITS.clone()
    found[1, 2, 3] += size
    return found


@pytest.mark.parametrize("rounding", [1e-5, 1e-4])
def test_a_difference_is_judged_in_multiples_of_rounding(rounding):
    assert allowed(off_everywhere(15 * rounding), rounding, 4 * rounding)
    assert not allowed(off_everywhere(17 * rounding), rounding, 4 * rounding)


def test_rounding_that_costs_much_does_not_excuse_everything():
    """16 times this rounding is more than a model keeps when a part of it is left out."""
    assert allowed(off_everywhere(0.9e-2), 2e-3, 8e-3)
    assert not allowed(off_everywhere(1.1e-2), 2e-3, 8e-3)


def test_one_wrong_logit_is_enough():
    assert allowed(off_once(15e-4), 1e-4, 1e-4)
    assert not allowed(off_once(17e-4), 1e-4, 1e-4)


def test_a_model_that_rounds_by_nothing_may_be_read_with_rounding():
    size = LOGITS.abs().max().item()
    assert allowed(off_everywhere(0.9e-6 * size), 0.0, 0.0)
    assert not allowed(off_everywhere(1.1e-6 * size), 0.0, 0.0)
    assert allowed(off_once(9e-6 * size), 0.0, 0.0)
    assert not allowed(off_once(11e-6 * size), 0.0, 0.0)


def test_what_is_no_number_is_never_allowed_and_is_named():
    for value in (torch.nan, torch.inf):
        difference = Exact(LOGITS, Difference(1.0, 1.0, "")).difference(off_once(value))
        assert not allowed(off_once(value), 1.0, 1.0)
        assert difference.where.startswith(f"row 1, position 2, token id 3: {value}")
