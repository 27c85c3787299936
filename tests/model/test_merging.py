"""What every linear that changes itself between updates must do."""

import pytest
import torch
from linears import config_of, inputs, make

from model.linear import LINEARS
from model.linear.merging import MergingLinear

KINDS = [name for name, kind in LINEARS.items() if issubclass(kind, MergingLinear)]

pytestmark = pytest.mark.parametrize("kind", KINDS)


def state(linear):
    return {name: tensor.clone() for name, tensor in linear.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_merge_leaves_the_map(kind):
    linear = make(kind)
    shapes, before = linear.shapes(), linear.dense_weight().clone()
    held = state(linear)
    linear.merge(0, 1)
    assert linear.shapes() == shapes
    assert not same(state(linear), held)
    torch.testing.assert_close(linear.dense_weight(), before, rtol=1e-5, atol=2e-5)


def test_a_merge_in_bf16_rounds_the_map_once(kind):
    linear = make(kind).to(torch.bfloat16)
    before = linear.dense_weight().clone()
    linear.merge(0, 1)
    assert (linear.dense_weight() - before).norm() < 0.01 * before.norm()


def test_what_is_drawn_comes_from_seed_name_and_index_alone(kind):
    def merged(seed=0, index=1, name="layers.0.attention.q_proj"):
        linear = make(kind, name=name)
        linear.load_state_dict(make(kind).state_dict())  # initial values go by the name too
        resets = linear.merge(seed, index)
        moments = {own: reset(torch.ones(linear.shapes()[own])) for own, reset in resets.items()}
        return state(linear) | {f"moment of {own}": moment for own, moment in moments.items()}

    first = merged()
    torch.rand(3)
    assert same(first, merged())
    for other in (merged(seed=1), merged(index=2), merged(name="layers.1.attention.q_proj")):
        assert not same(first, other)


def test_it_learns_at_once_after_a_merge(kind):
    """No two factors of zero wait for each other: what a merge has made zero receives gradient in the next step."""
    linear = make(kind)
    linear.merge(0, 1)
    linear(inputs(kind, 4)).sum().backward()
    assert any(p.grad.any() for p in linear.parameters())
    assert all(p.grad.any() for p in linear.parameters() if not p.any())


def test_resets_are_of_own_parameters_and_leave_their_argument(kind):
    linear = make(kind)
    resets = linear.merge(0, 3)
    assert resets
    for own, reset in resets.items():
        moment = torch.randn(linear.shapes()[own], generator=torch.Generator().manual_seed(0))
        before = moment.clone()
        after = reset(moment)
        assert torch.equal(moment, before)
        assert after.shape == moment.shape
        assert after.isfinite().all()
        assert (after == 0).any()
        kept = after != 0
        assert torch.equal(after[kept], moment[kept])


def test_the_period_is_a_key(kind):
    (key,) = [key for key in ("merge_every", "resample_every") if key in LINEARS[kind].Config.model_fields]
    linear = make(kind)
    assert linear.merge_every == getattr(config_of(kind), key)
