"""What every linear that changes itself between updates must do."""

from typing import get_args

import pytest
import torch
from linears import inputs, make

from model.linear import LINEARS
from model.linear.merging import MergingLinear, Moment

KINDS = [name for name, kind in LINEARS.items() if issubclass(kind, MergingLinear)]

INDEX = {"sst": 3}
"""Of a merge that does more than tidy up."""


def ready(kind, **settings):
    """One whose parameters a training could have left."""
    linear = make(kind, **settings)
    if kind == "sst":
        linear.merge(0, 1)
    return linear


def merge(linear, kind, seed=0, index=0):
    return linear.merge(seed, (index + 1) * INDEX.get(kind, 1))


pytestmark = pytest.mark.parametrize("kind", KINDS)


def state(linear):
    return {name: tensor.clone() for name, tensor in linear.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_merge_leaves_the_map(kind):
    linear = ready(kind)
    shapes, before = linear.shapes(), linear.dense_weight().clone()
    held = state(linear)
    merge(linear, kind)
    assert linear.shapes() == shapes
    assert not same(state(linear), held)
    torch.testing.assert_close(linear.dense_weight(), before, rtol=1e-5, atol=2e-5)


def test_a_merge_in_bf16_rounds_the_map_once(kind):
    linear = ready(kind).to(torch.bfloat16)
    before = linear.dense_weight().clone()
    merge(linear, kind)
    assert (linear.dense_weight() - before).norm() < 0.01 * before.norm()


def test_what_is_drawn_comes_from_seed_name_and_index_alone(kind):
    def merged(seed=0, index=0, name="layers.0.attention.q_proj"):
        linear = ready(kind, name=name)
        linear.load_state_dict(ready(kind).state_dict())  # initial values go by the name too
        resets = merge(linear, kind, seed, index)
        ones = {own: torch.ones(linear.shapes()[own]) for own in resets}
        return state(linear) | {f"moment of {own}": resets[own]("exp_avg", values) for own, values in ones.items()}

    first = merged()
    torch.rand(3)
    assert same(first, merged())
    for other in (merged(seed=1), merged(index=1), merged(name="layers.1.attention.q_proj")):
        assert not same(first, other)


def test_it_learns_at_once_after_a_merge(kind):
    """No two factors of zero wait for each other: what a merge has made zero receives gradient in the next step."""
    linear = ready(kind)
    merge(linear, kind)
    linear(inputs(kind, 4)).sum().backward()
    assert any(p.grad.any() for p in linear.parameters())
    assert all(p.grad.any() for p in linear.parameters() if not p.any())


def test_resets_are_of_own_parameters_and_leave_their_argument(kind):
    linear = ready(kind)
    resets = merge(linear, kind, index=2)
    assert resets
    for own, reset in resets.items():
        for moment in get_args(Moment):
            values = torch.randn(linear.shapes()[own], generator=torch.Generator().manual_seed(0)).square()
            before = values.clone()
            after = reset(moment, values)
            assert torch.equal(values, before)
            assert after.shape == values.shape
            assert after.isfinite().all()
            assert (after != before).any()
            assert (after >= 0).all()
