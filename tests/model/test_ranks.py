"""Ranks of single linears: which pattern decides, and that what is built, counted and grown goes by it."""

import pytest
import torch
from growing import LINEAR_CONFIGS, copy_into, empty, logits, outputs, shape, trained
from pydantic import ValidationError

from kernels.sparse_low_rank_linear.choice import Choice
from model.build import shape_of_model
from model.counts import count_parameters, linear_shapes, training_flops
from model.errors import UserError
from model.growth import plan_growth
from model.growth.linears import grow_linears, linears_alike, require_ranks_growable
from model.growth.tensors import GrownTensor, grow_tensors
from model.linear import LowRank, SparseLowRank
from model.linear.base import BaseLinear
from model.linear.ranks import linear_at, rank_of, require_patterns_used, require_ranks_fit

FACTORED = {name: linear for name, linear in LINEAR_CONFIGS.items() if hasattr(linear, "rank")}
factored = pytest.mark.parametrize("linear", FACTORED.values(), ids=FACTORED)
MIXED = (("layers.*.attention.?_proj", 4), ("layers.1.*", 12), ("*.down_proj", 5))


def with_ranks(linear, *ranks: tuple[str, int], **changes):
    return linear.model_copy(update={"ranks": ranks, **changes})


def test_the_last_pattern_that_matches_decides():
    config = LowRank.Config(rank=8, ranks={"layers.*.attention.*": 4, "layers.1.*": 12, "*.q_proj": 6})
    ranks = [rank_of(config, f"layers.{layer}.attention.{name}") for layer in (0, 1) for name in ("q_proj", "k_proj")]
    assert ranks == [6, 4, 6, 12]
    assert rank_of(config, "layers.0.feed_forward.up_proj") == 8
    assert linear_at(config, "layers.1.attention.k_proj") == LowRank.Config(rank=12)


def test_names_without_quotes_are_tables_within_each_other():
    nested = {"layers": {"0": {"attention": {"q_proj": 3, "k_proj": 4}}, "1": {"feed_forward": {"up_proj": 5}}}}
    assert LowRank.Config(ranks=nested).ranks == (
        ("layers.0.attention.q_proj", 3),
        ("layers.0.attention.k_proj", 4),
        ("layers.1.feed_forward.up_proj", 5),
    )


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "8", (8,)])
def test_a_rank_is_a_positive_integer(rank):
    with pytest.raises(ValidationError, match=r"'layers\.0\.\*' = .* is no rank; give an integer of at least 1"):
        SparseLowRank.Config(ranks={"layers.0.*": rank})


@pytest.mark.parametrize("given", [8, "layers.0.*", ("layers.0.*", 8), (("a", 1, 2),)])
def test_ranks_are_a_table(given):
    with pytest.raises(ValidationError, match=r"is no table of names and ranks; for example"):
        SparseLowRank.Config(ranks=given)


def test_a_pattern_without_effect_is_refused():
    names = list(linear_shapes(shape(2)))
    require_patterns_used("linear.ranks", MIXED, names)
    with pytest.raises(UserError, match=r"^linear\.ranks 'q_proj' matches nothing; names look like layers\.0\.att"):
        require_patterns_used("linear.ranks", (*MIXED, ("q_proj", 2)), names)
    with pytest.raises(UserError, match=r"^linear\.ranks 'layers\.1\.\*' has no effect: patterns after it match all"):
        require_patterns_used("linear.ranks", (("layers.1.*", 12), ("layers.*", 2)), names)


def test_a_rank_above_the_smaller_side_is_refused():
    linear = LowRank.Config(rank=4, ranks={"*.k_proj": 33})
    sentence = (
        r"^linear\.ranks '\*\.k_proj' = 33 exceeds the smaller side of layers\.0\.attention\.k_proj \(32 x 64\); "
    )
    with pytest.raises(UserError, match=sentence):
        require_ranks_fit(linear, linear_shapes(shape(2)))


@factored
def test_what_is_built_is_what_is_counted(linear):
    mixed = with_ranks(linear, *MIXED)
    model = shape_of_model(shape(3), mixed)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, BaseLinear)}
    assert list(linears) == list(linear_shapes(shape(3)))
    for name, module in linears.items():
        rank = rank_of(mixed, name)
        assert (len(module.A), module.B.shape[1]) == (rank, rank), name
        assert not hasattr(linear, "alpha") or module.scale == linear.alpha / rank, name
    assert count_parameters(shape(3), mixed)["trainable"] == sum(p.numel() for p in model.parameters())


@factored
def test_flops_are_those_of_the_layers_one_by_one(linear):
    def counted(n_layers, linear):
        choice = Choice(keep="layer") if linear.name == "sparse_low_rank" else None
        return training_flops(shape(n_layers), linear, 2, 8, lambda shape: choice, 3)["executed"]

    rest = 2 * counted(1, linear) - counted(2, linear)  # embedding and head
    one, two = (counted(1, with_ranks(linear, rank=rank)) - rest for rank in (3, 7))
    assert counted(2, with_ranks(linear, ("layers.1.*", 7), rank=3)) == rest + one + two


def grown(old, new, operator="stack"):
    """A model of 2 layers and the one of 4 that it grows into."""
    small, large, plan = trained(old, 2), empty(new, 4), plan_growth(operator, 2, 4)
    require_ranks_growable(old, new, plan, ["attention.q_proj", "feed_forward.down_proj"])
    state = dict(small.state_dict().items())
    tensors = grow_tensors(state, state.__getitem__, plan, old)
    copy_into(large, grow_linears(tensors, large.config, old, new, seed=0))
    return small, large


@factored
@pytest.mark.parametrize("rank", [8, 9])
def test_copies_have_their_sources_ranks_or_more(linear, rank):
    old = with_ranks(linear, ("layers.1.*", 12), rank=8)
    new = with_ranks(linear, ("layers.[13].*", 12), ("layers.3.attention.q_proj", 16), rank=rank)
    small, large = grown(old, new)
    for layer in range(4):
        before, after = small.layers[layer % 2], large.layers[layer]
        for name, module in after.named_modules():
            if isinstance(module, BaseLinear):
                source = outputs(before.get_submodule(name))
                torch.testing.assert_close(outputs(module), source, rtol=1e-5, atol=1e-6)
    assert len(large.layers[2].attention.q_proj.A) == rank
    assert len(large.layers[3].attention.q_proj.A) == 16


def test_copies_of_less_rank_are_refused_and_alike_ones_known():
    linear = SparseLowRank.Config(rank=8, density=0.3)
    old, plan, parts = with_ranks(linear, ("layers.1.*", 12)), plan_growth("stack", 2, 4), ["attention.q_proj"]
    with pytest.raises(UserError) as caught:
        require_ranks_growable(old, with_ranks(linear, ("layers.1.*", 12)), plan, parts)
    assert str(caught.value) == (
        "growth: layers.3.attention.q_proj has rank 8 by linear.rank, but it is a copy of layers.1.attention.q_proj, "
        "which has 12; growth only adds, so give it 12 or more"
    )
    assert linears_alike(old, with_ranks(linear, ("layers.[13].*", 12)), plan, parts)
    assert not linears_alike(old, with_ranks(linear, ("layers.[123].*", 12)), plan, parts)
    assert not linears_alike(old, with_ranks(linear, ("layers.[13].*", 12), density=0.4), plan, parts)


def test_growth_of_ranks_in_place_keeps_the_logits():
    old = LowRank.Config(rank=8, ranks={"layers.1.*": 12})
    new = LowRank.Config(rank=8, ranks={"layers.1.*": 12, "layers.0.*.up_proj": 10})
    small, large = trained(old, 2), empty(new, 2)
    tensors = (GrownTensor(*item) for item in small.state_dict().items())
    copy_into(large, grow_linears(tensors, large.config, old, new, seed=0))
    torch.testing.assert_close(logits(large), logits(small), rtol=1e-5, atol=1e-5)
