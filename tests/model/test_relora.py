"""ReLoRA's merge and its resets, against the same in float64."""

import pytest
import torch

from model.linear import ReLora, build_linear

SCALE = 3.0 / 4


def make(**changes):
    linear = build_linear(ReLora.Config(rank=4, alpha=3.0, **changes), 40, 30, "q")
    linear.reset_parameters(0)
    with torch.no_grad():
        linear.B.normal_(generator=torch.Generator().manual_seed(1))
    return linear


def moment(shape=(4, 40), seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_merge_adds_the_product_and_begins_again():
    linear = make()
    W, A, B = (t.detach().double() for t in (linear.weight.clone(), linear.A.clone(), linear.B.clone()))
    linear.merge(0, 1)
    torch.testing.assert_close(linear.weight.double(), W + SCALE * B @ A, rtol=1e-6, atol=1e-6)
    assert not linear.B.any()
    assert not torch.equal(linear.A.double(), A)
    assert 0.9 * 40**-0.5 < linear.A.abs().max() <= 40**-0.5
    assert linear.A.mean().abs() < 0.02


@pytest.mark.parametrize("ratio", [0.9, 0.8, 0.001])
def test_the_smallest_of_a_moment_are_dropped(ratio):
    reset = make(reset_ratio=ratio).merge(0, 1)["A"]
    before = moment()
    after, kept = reset(before), round((1 - ratio) * 160)
    assert int((after != 0).sum()) == min(kept, 159)
    assert before[after == 0].abs().max() < after[after != 0].abs().min()


def test_drawn_entries_are_the_same_of_both_moments():
    resets = make(reset="random", reset_ratio=0.7).merge(0, 1)
    one, other = resets["A"](moment()), resets["A"](moment(seed=3))
    assert torch.equal(one == 0, other == 0)
    assert 0.6 < (one == 0).float().mean() < 0.8
    assert not torch.equal((one == 0)[:, :30].T, resets["B"](moment((30, 4))) == 0)


def test_all_are_dropped():
    assert not make(reset="zero").merge(0, 1)["B"](moment((30, 4))).any()
