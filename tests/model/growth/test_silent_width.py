"""Heads and hidden units that begin silent: the function stays, what is new is random or zero, and it trains."""

import pytest
import torch
from growing import LINEAR_CONFIGS, copy_into, empty, logits, never_moved, outputs, shape, trained, widens

from model.errors import UserError
from model.growth.linears import grow_linears
from model.growth.shapes import require_growable
from model.growth.silent_width import add_width
from model.growth.tensors import GrownTensor
from model.growth.width import require_linears_widen
from model.linear.base import BaseLinear

LINEARS = {name: linear for name, linear in LINEAR_CONFIGS.items() if widens(linear, "zero")}
linears = pytest.mark.parametrize("linear", LINEARS.values(), ids=LINEARS)
ELEMENT = LINEAR_CONFIGS["sparse_low_rank-element"]

# Of 96 hidden units and 4 heads of 16 over 2 key and value heads.
WIDER = {
    "units": {"ffn_dim": 97},
    "heads": {"n_heads": 6, "n_kv_heads": 3},
    "both": {"ffn_dim": 150, "n_heads": 10, "n_kv_heads": 5},
}


def state_of(model):
    return [GrownTensor(*item) for item in model.state_dict().items()]


def grow(small, linear, seed=0, **changes):
    large = empty(linear, len(small.layers), head_dim=16, **changes)
    copy_into(large, add_width(state_of(small), small.config, large.config, linear, seed))
    return large


def pairs(small, large):
    for name, module in small.named_modules():
        if isinstance(module, BaseLinear):
            yield name, module, large.get_submodule(name)


@pytest.mark.parametrize("changes", WIDER.values(), ids=WIDER)
@linears
def test_the_logits_stay(linear, changes):
    small = trained(linear, 2, tie_embeddings=True)
    large = grow(small, linear, tie_embeddings=True, **changes)
    before = logits(small)
    assert (logits(large) - before).abs().max() < 1e-5 * before.abs().max()


@linears
def test_what_was_there_stays_and_what_is_new_is_as_fresh_or_zero(linear):
    small = trained(linear, 2)
    large = grow(small, linear, **WIDER["both"])
    new_rows = []
    for name, before, after in pairs(small, large):
        weight, wide = outputs(before), outputs(after)
        n_out, n_in = weight.shape
        torch.testing.assert_close(wide[:n_out, :n_in], weight, rtol=1e-6, atol=1e-7)
        if name.endswith(("o_proj", "down_proj")):
            assert wide.shape[1] > n_in
            assert not wide[:, n_in:].any(), name
        else:
            assert wide.shape[0] > n_out
            rows = wide[n_out:]
            new_rows.append(rows.abs().sum())
            assert rows.any(dim=1).float().mean() > 0.9, name
            assert rows.abs().max() < 1.5, name
    assert len({float(total) for total in new_rows}) == len(new_rows)  # each linear has its own


def test_a_reader_that_is_frozen_is_refused():
    linear = LINEAR_CONFIGS["lora_fa"]
    require_linears_widen(shape(1), shape(1, ffn_dim=192), linear, linear)
    with pytest.raises(UserError, match=r'growth\.width = "zero" with linear\.name = "lora_fa".*set growth\.width'):
        require_linears_widen(shape(1), shape(1, ffn_dim=192), linear, linear, "zero")


@linears
def test_what_is_new_moves_within_two_steps(linear):
    still = never_moved(grow(trained(linear, 2), linear, **WIDER["both"]).train())
    still.pop("tok_embeddings.weight", None)
    assert all(part < 0.01 for part in still.values()), still


def test_new_places_of_a_support_are_in_what_is_new():
    small = trained(ELEMENT, 2)
    large = grow(small, ELEMENT, **WIDER["both"])
    for name, before, after in pairs(small, large):
        (old_out, old_in), (n_out, n_in) = before.support.shape, after.support.shape
        assert after.values.numel() == int(ELEMENT.density * n_out * n_in), name
        flat = after.support.flat().long()
        inside = (flat // n_in < old_out) & (flat % n_in < old_in)
        old = before.support.flat().long()
        assert torch.equal(flat[inside].sort().values, (old // old_in * n_in + old % old_in).sort().values)
        part = (~inside).sum() / (n_out * n_in - old_out * old_in)
        assert part == pytest.approx(ELEMENT.density, abs=0.01)
        if n_out > old_out:
            assert 0.9 * n_in**-0.5 < after.values[~inside].abs().max() <= n_in**-0.5


def test_it_comes_from_seed_and_name_and_is_counted():
    small, rank = trained(ELEMENT, 2), ELEMENT.model_copy(update={"rank": 12})
    large = shape(2, head_dim=16, **WIDER["units"])
    streams = [
        {item.name: item for item in add_width(state_of(small), small.config, large, ELEMENT, seed)}
        for seed in (0, 0, 1)
    ]
    up, down = (f"layers.1.feed_forward.{name}_proj." for name in ("up", "down"))
    assert all(torch.equal(streams[0][name].tensor, streams[1][name].tensor) for name in streams[0])
    assert not torch.equal(streams[0][up + "values"].tensor, streams[2][up + "values"].tensor)
    added = int(0.34 * 97 * 64) - int(0.34 * 96 * 64)
    assert streams[0][up + "values"][2:] == (0, 4 * added)
    assert streams[0][up + "B"][2:] == (4 * 8, 0)
    assert streams[0][down + "values"][2:] == (4 * added, 0)
    assert streams[0][down + "A"][2:] == (4 * 8, 0)
    assert streams[0]["norm.weight"][2:] == (0, 0)
    wider = empty(rank, 2, head_dim=16, **WIDER["units"])
    copy_into(wider, grow_linears(streams[0].values(), large, ELEMENT, rank, 0))
    torch.testing.assert_close(logits(wider), logits(small), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 128, "head_dim": 16}, r"growth\.dim 64 cannot grow with growth\.width = \"zero\": zeros among the"),
        ({"ffn_dim": 95}, r"growth\.ffn_dim 96 is more than model\.ffn_dim 95; growth only adds"),
        ({"n_heads": 8, "head_dim": 16}, r"growth\.n_kv_heads 2 of growth\.n_heads 4 is not the proportion of "),
    ],
)
def test_what_cannot_begin_silent_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        require_growable(shape(2), shape(2, **changes), "zero")
    require_growable(shape(2), shape(2, ffn_dim=97, n_heads=6, n_kv_heads=3, head_dim=16), "zero")


def test_densities_by_shape_are_those_of_the_wider_shapes():
    linear = LINEARS["sparse"].model_copy(update={"densities": "erdos_renyi"})
    small = trained(linear, 2)
    torch.testing.assert_close(logits(grow(small, linear, **WIDER["both"])), logits(small), rtol=1e-5, atol=1e-5)
