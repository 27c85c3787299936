"""Plans of the operators: which layers are silent, and what is refused."""

import pytest
from growing import shape

from model.errors import UserError
from model.growth import GROWTH, GrowthOptions, GrowthPlan, plan_growth
from model.growth.plan import small_layers
from model.growth.shapes import require_growable

SOURCES = GrowthOptions(source_layers=(0, 1, 0, 1))


def options_of(operator, **changes):
    return GrowthOptions(**{"source_layers": (0, 1, 0, 1) if operator == "source_layers" else ()} | changes)


def test_design_names_are_there():
    assert {"stack", "interleave", "source_layers", "zero"} <= set(GROWTH)


@pytest.mark.parametrize("operator", GROWTH)
def test_every_operator_plans_a_doubling(operator):
    plan = plan_growth(operator, 2, 4, options_of(operator))
    assert (plan.small, len(plan.source), set(plan.source)) == (2, 4, {0, 1})
    assert bool(plan.silent) == (operator == "zero")


@pytest.mark.parametrize("operator", GROWTH)
def test_function_preserving_keeps_the_first_copies_alone(operator):
    plan = plan_growth(operator, 2, 4, options_of(operator, function_preserving=True))
    assert [plan.source[i] for i in range(4) if i not in plan.silent] == [0, 1]


def test_stack_silences_all_but_the_first_stack():
    plan = plan_growth("stack", 3, 9, GrowthOptions(function_preserving=True))
    assert plan.silent == set(range(3, 9))


def test_zero_is_lemons_interleaving_unless_told_otherwise():
    assert plan_growth("zero", 2, 6) == GrowthPlan(2, (0, 0, 0, 1, 1, 1), frozenset({1, 2, 4, 5}))
    stacked = plan_growth("zero", 2, 6, GrowthOptions(order="stack"))
    assert stacked == plan_growth("stack", 2, 6, GrowthOptions(function_preserving=True))


def test_an_explicit_list_may_drop_and_reorder_layers():
    plan = plan_growth("source_layers", 3, 4, GrowthOptions(source_layers=(2, 0, 0, 2)))
    assert plan == GrowthPlan(3, (2, 0, 0, 2))


@pytest.mark.parametrize(
    ("operator", "small", "large", "options", "message"),
    [
        ("stacks", 2, 4, {}, r"growth\.operator 'stacks' is none of stack, interleave"),
        ("stack", 2, 4, {"source_layers": (0, 1, 0, 1)}, r"growth\.source_layers has no meaning .* 'stack'"),
        ("stack", 2, 4, {"order": "interleave"}, r"growth\.order has no meaning .* 'stack'"),
        ("zero", 2, 4, {"source_layers": (0, 1, 0, 1)}, r"growth\.source_layers has no meaning .* 'zero'"),
        ("zero", 2, 4, {"order": "abab"}, r"growth\.order 'abab' is none of stack"),
        ("zero", 4, 6, {}, r"growth\.factor: order 'interleave' cannot grow 4 layers to 6"),
        ("source_layers", 2, 4, {}, r"growth\.source_layers names 0 layers; .* 4$"),
        ("source_layers", 2, 4, {"source_layers": (0, 1, 2, 0)}, r"growth\.source_layers\[2\] is 2; .* 0 to 1"),
        ("source_layers", 2, 4, {"source_layers": (0, -1, 1, 0)}, r"growth\.source_layers\[1\] is -1"),
        ("source_layers", 4, 2, {"source_layers": (0, 1)}, r"growth\.factor: 4 layers cannot grow to 2"),
        ("source_layers", 2, 2, {"source_layers": (0, 1), "order": "stack"}, r"growth\.order has no meaning"),
        (
            "source_layers",
            3,
            4,
            {"source_layers": (0, 2, 1, 1), "function_preserving": True},
            r"growth\.function_preserving needs .* growth\.source_layers gives 0, 2, 1 of 0 to 2",
        ),
        (
            "source_layers",
            3,
            3,
            {"source_layers": (0, 1, 1), "function_preserving": True},
            r"growth\.function_preserving needs every layer",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(operator, small, large, options, message):
    with pytest.raises(UserError, match=message):
        plan_growth(operator, small, large, GrowthOptions(**options))


def test_factor_divides_the_layers():
    assert small_layers(24, 4) == 6
    for layers, factor in ((24, 5), (24, 0), (2, 4), (6, -2)):
        with pytest.raises(UserError, match=rf"growth\.factor {factor} does not divide model\.n_layers {layers}"):
            small_layers(layers, factor)


@pytest.mark.parametrize("changes", [{"tie_embeddings": True}, {"rope_theta": 5e5}])
def test_models_that_differ_in_what_cannot_grow_are_refused(changes):
    require_growable(shape(2), shape(4, max_seq_len=32))
    (key,) = changes
    with pytest.raises(UserError, match=rf"growth adds .* model\.{key} is "):
        require_growable(shape(2, **changes), shape(4))


def test_a_grown_model_has_no_fewer_layers():
    with pytest.raises(UserError, match=r"growth\.factor: 4 layers cannot grow to 2"):
        require_growable(shape(4), shape(2))
