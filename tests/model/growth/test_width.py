"""Growth of channels, heads and hidden units: the function stays, and copies of one channel do not."""

import pytest
import torch
from growing import LINEAR_CONFIGS, copy_into, empty, logits, never_moved, outputs, shape, trained
from memory import LiveMemory

from model.counts import projection_shapes
from model.errors import UserError
from model.growth import GrowthOptions, plan_growth
from model.growth.linears import grow_linears
from model.growth.shapes import require_growable
from model.growth.tensors import GrownTensor, grow_tensors
from model.growth.width import AXES, SHARE_SPREAD, copy_width, require_linears_widen
from model.linear import LINEARS as KINDS
from model.linear.base import BaseLinear

BLOCK = LINEAR_CONFIGS["sparse_low_rank-block"]
LINEARS = {name: linear for name, linear in LINEAR_CONFIGS.items() if linear != BLOCK and KINDS[linear.name].widens}
linears = pytest.mark.parametrize("linear", LINEARS.values(), ids=LINEARS)
matrices = pytest.mark.parametrize(
    "linear",
    [linear for linear in LINEARS.values() if not KINDS[linear.name].not_a_matrix],
    ids=lambda linear: linear.name,
)
ELEMENT = LINEAR_CONFIGS["sparse_low_rank-element"]

# Of 64 channels, 4 heads of 16 over 2 key and value heads, and 96 hidden units.
ALL = {"dim": 128, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 192}
WIDER = {
    "all": ALL,
    "threefold": {"dim": 192, "n_heads": 12, "n_kv_heads": 6},
    "by different factors": {"dim": 128, "n_heads": 12, "n_kv_heads": 4, "ffn_dim": 480},
    "channels": {"dim": 128},
    "hidden units": {"ffn_dim": 192},
    "heads": {"n_heads": 8},
    "key and value heads": {"n_kv_heads": 4},
}


def state_of(model):
    return [GrownTensor(*item) for item in model.state_dict().items()]


def grow(small, linear, seed=0, spread=SHARE_SPREAD, **changes):
    large = empty(linear, len(small.layers), head_dim=16, **changes)
    copy_into(large, copy_width(state_of(small), small.config, large.config, linear, seed, spread))
    return large


def pairs(small, large):
    for name, module in small.named_modules():
        if isinstance(module, BaseLinear):
            yield name, module, large.get_submodule(name)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("changes", WIDER.values(), ids=WIDER)
@linears
def test_the_logits_stay(linear, changes, tied):
    small = trained(linear, 2, tie_embeddings=tied)
    large = grow(small, linear, tie_embeddings=tied, **changes)
    before = logits(small)
    assert (logits(large) - before).abs().max() < 1e-5 * before.abs().max()


def by_copies(weight, outputs, inputs):
    """A weight (out, in) as (groups, copies, within) of rows and of columns."""
    return weight.unflatten(1, inputs).unflatten(0, outputs)


@matrices
def test_the_copies_of_a_column_sum_to_it(linear):
    """Written out for two copies of channels and units and three of heads, each head's behind it."""
    small = trained(linear, 2)
    large = grow(small, linear, dim=128, n_heads=12, n_kv_heads=6, ffn_dim=192)
    for name, before, after in pairs(small, large):
        weight, wide = before.dense_weight(), after.dense_weight()
        outputs = (-1, 3, 16) if name.endswith(("q_proj", "k_proj", "v_proj")) else (-1, 2, 1)
        inputs = (-1, 3, 16) if name.endswith("o_proj") else (-1, 2, 1)
        sums = by_copies(wide, outputs, inputs).sum(4)  # rows as (groups, copies, within), and columns
        sums = sums.flatten(3)
        for copy in range(outputs[1]):
            torch.testing.assert_close(sums[:, copy].flatten(0, 1), weight, rtol=1e-5, atol=1e-6, msg=name)
        for tensor, small_tensor in zip(after.parameters(), before.parameters(), strict=True):
            assert not torch.isnan(tensor).any()
            assert tensor.abs().max() < (1 + SHARE_SPREAD) * small_tensor.abs().max()


@linears
def test_every_parameter_moves_and_copies_part_company(linear):
    large = grow(trained(linear, 2), linear, **ALL).train()
    still = never_moved(large, steps=3)
    still.pop("tok_embeddings.weight", None)
    assert all(part < 0.01 for part in still.values()), still
    for name, (one, other) in of_copies(large).items():
        assert ((one - other).abs() > 1e-5).float().mean() > 0.05, name


def test_with_even_shares_copies_would_stay_equal():
    """Equal weights have equal gradients: the large model would be the small one for ever.

    Here every head has its own keys and values; where heads share them, copies of those serve other heads, and differ.
    """
    linear = LINEARS["dense"]
    large = grow(trained(linear, 2, n_kv_heads=4), linear, spread=0.0, **ALL | {"n_kv_heads": 8}).train()
    never_moved(large, steps=3)
    for name, (one, other) in of_copies(large).items():
        assert ((one - other).abs() > 1e-5).float().mean() < 0.01, name


def of_copies(large):
    """Whatever is there twice, by name: of linears, the outputs."""
    weights = {
        "tok_embeddings.weight": large.tok_embeddings.weight.view(-1, 64, 2).unbind(2),
        "attention_norm": large.layers[0].attention_norm.weight.view(64, 2).unbind(1),
        "head": large.lm_head.weight.view(-1, 64, 2).unbind(2),
    }
    for name, module in large.named_modules():
        if isinstance(module, BaseLinear):
            heads = name.endswith(("q_proj", "k_proj", "v_proj"))
            rows = [-1, 2, 16] if heads else [-1, 2, 1]
            weights[name] = outputs(module).unflatten(0, rows).unbind(1)
    return weights


@pytest.mark.parametrize("changes", [ALL, {"dim": 192, "n_heads": 12, "n_kv_heads": 6, "ffn_dim": 288}])
def test_a_support_has_its_copies_and_zeros_up_to_its_density(changes):
    small = trained(ELEMENT, 2)
    large, added = grow(small, ELEMENT, **changes), 0
    for name, before, after in pairs(small, large):
        shapes = (before.in_features, before.out_features), (after.in_features, after.out_features)
        count = [int(ELEMENT.density * n_in * n_out) for n_in, n_out in shapes]
        assert [before.values.numel(), after.values.numel()] == count, name
        times = shapes[1][0] * shapes[1][1] // (shapes[0][0] * shapes[0][1])
        assert (after.values != 0).sum() == times * (before.values != 0).sum(), name
        added += count[1] - times * count[0]
    assert added


def test_a_support_that_would_lack_entries_is_refused():
    """0.03 of 48 x 50 is 72 entries, and of 240 x 50, rounded down after rounding, 359."""
    linear = ELEMENT.model_copy(update={"density": 0.03, "rank": 2})
    small, large = (shape(1, dim=50, head_dim=12, n_kv_heads=4, n_heads=4, ffn_dim=width) for width in (48, 240))
    with pytest.raises(UserError, match=r"linear\.density 0\.03 holds 359 entries of .*gate_proj, and 360 come of"):
        require_linears_widen(small, large, linear, linear)
    require_linears_widen(small, large, linear, linear.model_copy(update={"density": 0.0301}))
    require_linears_widen(small, small, BLOCK, BLOCK)


def test_depth_width_rank_and_density_in_one_stream():
    old, new = ELEMENT, ELEMENT.model_copy(update={"rank": 12, "density": 0.5})
    small, large = trained(old, 2), empty(new, 4, **ALL)
    state, plan = small.state_dict(), plan_growth("stack", 2, 4, GrowthOptions(function_preserving=True))
    deep = grow_tensors(state, state.__getitem__, plan, old)
    copy_into(large, grow_linears(copy_width(deep, small.config, large.config, old, 0), large.config, old, new, 0))
    torch.testing.assert_close(logits(large), logits(small), rtol=1e-5, atol=1e-5)
    assert not large.layers[2].attention.o_proj.dense_weight().any()
    shares = [large.layers[i].feed_forward.up_proj.A[0] for i in (0, 2)]
    assert not torch.equal(*shares)  # every copy of a layer has its own


def test_shares_come_from_seed_and_name():
    small = trained(LINEARS["dense"], 2)
    one, same, other = (grow(small, LINEARS["dense"], seed, **ALL) for seed in (0, 0, 1))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        shared = "_proj" in name or "lm_head" in name
        assert torch.equal(parameter, other.get_parameter(name)) != shared, name


def test_stored_bf16_weights_keep_the_function_to_their_rounding():
    small = trained(LINEARS["dense"], 2, param_dtype=torch.bfloat16)
    large = empty(LINEARS["dense"], 2, torch.bfloat16, **ALL)
    copy_into(large, copy_width(state_of(small), small.config, large.config, LINEARS["dense"], 0))
    before = logits(small)
    assert (logits(large) - before).abs().max() < 2**-6 * before.abs().max()


def test_what_is_new_is_counted():
    plan, state = plan_growth("zero", 2, 4), trained(ELEMENT, 2).state_dict()
    deep = grow_tensors(state, state.__getitem__, plan, ELEMENT)
    items = {item.name: item for item in copy_width(deep, shape(2), shape(4, **ALL), ELEMENT, 0)}
    copied, silent = items["layers.0.attention.o_proj.B"], items["layers.1.attention.o_proj.B"]
    assert (copied.zeroed, copied.drawn) == (0, 0)
    assert silent.zeroed == silent.tensor.nbytes == 4 * 128 * 8


@linears
def test_memory_peaks_at_little_more_than_the_grown_model(linear):
    small, plan = trained(linear, 2), plan_growth("stack", 2, 12)
    state = small.state_dict()
    with LiveMemory() as memory:
        large = empty(linear, 12, **ALL)
        memory.forget()  # of building: what is measured is growth
        deep = grow_tensors(state, lambda name: state[name].clone(), plan, linear)
        copy_into(large, copy_width(deep, small.config, large.config, linear, 0))
    assert memory.peak < 0.5 * sum(tensor.nbytes for tensor in large.state_dict().values())


def test_the_same_widths_pass_unchanged():
    state = state_of(trained(ELEMENT, 2))
    assert all(out is item for out, item in zip(copy_width(state, shape(2), shape(2), ELEMENT, 0), state, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 96}, r"growth\.dim 64 does not divide model\.dim 96; .* so set a divisor$"),
        ({"dim": 32, "n_heads": 2}, r"growth\.dim 64 is more than model\.dim 32; growth only adds"),
        ({"ffn_dim": 100}, r"growth\.ffn_dim 96 does not divide model\.ffn_dim 100; .*, or growth\.width = \"zero\"$"),
        ({"n_kv_heads": 1}, r"growth\.n_kv_heads 2 is more than model\.n_kv_heads 1"),
        ({"dim": 128}, r"16 channels in the small model and 32 in the grown one; .* model\.head_dim = 16"),
        ({"norm_eps": 1e-5}, r"growth adds layers, channels and heads .* model\.norm_eps is 1e-06 .* and 1e-05"),
        ({"tie_embeddings": True}, r"model\.tie_embeddings is False in the small model and True"),
        ({"n_layers": 1}, r"2 layers cannot grow to 1"),
    ],
)
def test_what_is_no_growth_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        require_growable(shape(2), shape(**{"n_layers": 2} | changes))


def test_what_has_no_wider_copy_is_refused():
    with pytest.raises(UserError, match=r'linear\.support = "block" cannot grow in width'):
        require_linears_widen(shape(2), shape(2, **ALL), BLOCK, BLOCK)
    for linear in LINEAR_CONFIGS.values():
        if not KINDS[linear.name].widens:
            with pytest.raises(UserError, match=f'linear.name = "{linear.name}" cannot grow in width'):
                require_linears_widen(shape(2), shape(2, **ALL), linear, linear)
            require_linears_widen(shape(2), shape(2), linear, linear)
    state = [GrownTensor("layers.0.attention.q_proj.codes", torch.zeros(64, 64, dtype=torch.uint8))]
    with pytest.raises(UserError, match=r"layers\.0\.attention\.q_proj\.codes has no copy in a wider model"):
        list(copy_width(state, shape(2), shape(2, **ALL), LINEARS["dense"], 0))


def test_every_linear_of_a_block_has_axes():
    assert AXES.keys() == projection_shapes(shape(1)).keys()


def test_densities_by_shape_are_those_of_the_wider_shapes():
    """Twice every side is a matrix of the same density; other factors may leave a projection too few entries."""
    linear = LINEARS["sparse"].model_copy(update={"densities": "erdos_renyi"})
    small = trained(linear, 2)
    torch.testing.assert_close(logits(grow(small, linear, **ALL)), logits(small), rtol=1e-5, atol=1e-5)
    require_linears_widen(shape(2), shape(2, **ALL), linear, linear)
    with pytest.raises(UserError, match=r"linear\.density 0\.34 holds 3518 entries of .*gate_proj, and 3600 come"):
        require_linears_widen(shape(2), shape(2, ffn_dim=192), linear, linear)
    require_linears_widen(shape(2), shape(2, ffn_dim=192), linear, linear, "zero")
