"""Growth of rank and density: the function stays, and what is new trains."""

import pytest
import torch
from growing import LINEAR_CONFIGS, copy_into, empty, logits, never_moved, outputs, shape, trained
from memory import LiveMemory

from model.errors import UserError
from model.growth import GrowthOptions, plan_growth
from model.growth.linears import grow_density, grow_linears
from model.growth.tensors import GrownTensor, grow_tensors
from model.linear import build_linear
from model.linear.base import BaseLinear
from model.linear.support.element import ElementSparse

FACTORED = {name: linear for name, linear in LINEAR_CONFIGS.items() if hasattr(linear, "rank")}
factored = pytest.mark.parametrize("old", FACTORED.values(), ids=FACTORED)
SPARSE = {name: linear for name, linear in LINEAR_CONFIGS.items() if getattr(linear, "support", "") == "element"}
sparse = pytest.mark.parametrize("old", SPARSE.values(), ids=SPARSE)
ELEMENT = LINEAR_CONFIGS["sparse_low_rank-element"]


def changed(config, **changes):
    """`config` with those of the changes that it knows."""
    fields = type(config).model_fields
    return config.model_copy(update={key: value for key, value in changes.items() if key in fields})


def state_of(model):
    return [GrownTensor(*item) for item in model.state_dict().items()]


def grow(small, old, new, seed=0):
    large = empty(new, len(small.layers))
    copy_into(large, grow_linears(state_of(small), small.config, old, new, seed))
    return large


def pairs(small, large):
    for name, module in small.named_modules():
        if isinstance(module, BaseLinear):
            yield name, module, large.get_submodule(name)


@pytest.mark.parametrize(("rank", "alpha"), [(16, 12.0), (11, 12.0), (8, 12.0), (11, 16.5), (16, 5.0), (8, 7.0)])
@factored
def test_more_rank_or_another_alpha_is_the_same_map(old, rank, alpha):
    small, new = trained(old, 2), changed(old, rank=rank, alpha=alpha)
    large = grow(small, old, new)
    for name, before, after in pairs(small, large):
        wanted = outputs(before)
        error = (outputs(after) - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-6, name
        assert torch.equal(after.A[:8], before.A)
        assert not after.B[:, 8:].any()
        if not hasattr(old, "alpha") or alpha / rank == old.alpha / old.rank:
            assert torch.equal(after.B[:, :8], before.B)
    torch.testing.assert_close(logits(large), logits(small), rtol=1e-5, atol=1e-5)


@factored
def test_new_rows_of_a_are_those_of_a_fresh_linear(old):
    large = grow(trained(old, 2), old, changed(old, rank=32))
    rows = [large.layers[i].attention.q_proj.A[8:] for i in (0, 1)]
    fresh = build_linear(changed(old, rank=32), 64, 64, "q")
    fresh.reset_parameters(0)
    for one in rows:
        assert one.std().item() == pytest.approx(fresh.A.std().item(), rel=0.07)
        assert one.abs().max().item() == pytest.approx(fresh.A.abs().max().item(), rel=0.2)
        assert abs(one.mean().item()) < 0.1 * fresh.A.std()
    assert not torch.equal(*rows)
    again, other = (grow(trained(old, 2), old, changed(old, rank=32), seed) for seed in (0, 1))
    assert torch.equal(again.layers[0].attention.q_proj.A[8:], rows[0])
    assert not torch.equal(other.layers[0].attention.q_proj.A[8:], rows[0])


@pytest.mark.parametrize("changes", [{"density": 0.5}, {"density": 0.97}, {"density": 0.45, "rank": 20, "alpha": 30.0}])
@sparse
def test_more_density_keeps_every_entry_and_adds_zeros(old, changes):
    small, new = trained(old, 2), changed(old, **changes)
    large = grow(small, old, new)
    for name, before, after in pairs(small, large):
        size = ElementSparse.count(new.density, before.in_features, before.out_features)
        assert after.values.numel() == size > before.values.numel()
        old_flat, new_flat = before.support.flat(), after.support.flat()
        dense = torch.zeros(before.out_features * before.in_features)
        dense[new_flat] = after.values.detach()
        assert torch.equal(dense[old_flat], before.values.detach()), name
        assert torch.isin(old_flat, new_flat).all()
    if "rank" not in changes:
        assert all(torch.equal(one.dense_weight(), two.dense_weight()) for _, one, two in pairs(small, large))
    torch.testing.assert_close(logits(large), logits(small), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 200), (129, 257), (5, 7)])
def test_entries_over_several_tiles_are_in_tile_order(shape):
    n_out, n_in = shape
    support = ElementSparse(0.1, n_in, n_out, "q.support")
    support.reset_parameters(0)
    values = torch.arange(1.0, support.values_shape[0] + 1)
    size = support.values_shape[0] * 3
    grown, grown_values = grow_density(support.tiles(), values, size, 0, "q.support")
    grown.check()
    assert grown.nnz == size
    assert (grown.loc.dtype, grown.tile_ptr.dtype) == (torch.uint16, torch.int32)
    held = grown_values != 0
    assert torch.equal(grown.flat()[held], support.flat())
    assert torch.equal(grown_values[held], values)


def test_every_free_position_is_equally_likely():
    support, draws = ElementSparse(0.25, 4, 3, "q.support"), 2000
    support.reset_parameters(0)
    values, counts = torch.ones(3), torch.zeros(12)
    for seed in range(draws):
        grown, _ = grow_density(support.tiles(), values, 6, seed, "q")
        counts[grown.flat()] += 1 / draws
    free = torch.ones(12, dtype=torch.bool)
    free[support.flat()] = False
    assert (counts[~free] - 1).abs().max() < 1e-3
    assert (counts[free] - 1 / 3).abs().max() < 5 * (2 / 9 / draws) ** 0.5


@factored
def test_what_is_new_moves_within_two_steps(old):
    new = changed(old, rank=16, density=0.6 if old is ELEMENT else 0.34)
    still = never_moved(grow(trained(old, 2), old, new).train())
    still.pop("tok_embeddings.weight", None)
    assert all(part < 0.01 for part in still.values()), still


def test_depth_rank_and_density_in_one_stream():
    old, new = ELEMENT, changed(ELEMENT, rank=12, density=0.5)
    small, large = trained(old, 2), empty(new, 4)
    state, plan = small.state_dict(), plan_growth("stack", 2, 4, GrowthOptions(function_preserving=True))
    copy_into(large, grow_linears(grow_tensors(state, state.__getitem__, plan, old), large.config, old, new, 0))
    torch.testing.assert_close(logits(large), logits(small), rtol=1e-5, atol=1e-5)
    rows = [large.layers[i].attention.q_proj.A[8:] for i in (0, 2)]
    assert not torch.equal(*rows)  # what is new of a copy is its own


def test_what_is_new_is_counted():
    old, new = ELEMENT, changed(ELEMENT, rank=12, density=0.5)
    items = {item.name: item for item in grow_linears(state_of(trained(old, 2)), shape(2), old, new, 0)}
    q = "layers.1.attention.q_proj."
    assert items[q + "A"][2:] == (0, 4 * 64 * 4)
    assert items[q + "B"][2:] == (4 * 64 * 4, 0)
    added = 64 * 64 // 2 - int(0.34 * 64 * 64)
    assert items[q + "values"][2:] == (4 * added, 0)
    assert items[q + "support.loc"][2:] == (0, 2 * added)
    assert items["norm.weight"][2:] == (0, 0)


def test_memory_peaks_at_little_more_than_the_grown_model():
    old, new = ELEMENT, changed(ELEMENT, rank=12, density=0.5)
    small, plan = trained(old, 2).state_dict(), plan_growth("stack", 2, 12)
    with LiveMemory() as memory:
        large = empty(new, 12)
        memory.forget()  # of building: what is measured is growth
        grown = grow_tensors(small, lambda name: small[name].clone(), plan, old)
        copy_into(large, grow_linears(grown, large.config, old, new, 0))
        del grown
    assert memory.peak < 0.3 * sum(tensor.nbytes for tensor in large.state_dict().values())


def test_the_same_linears_pass_unchanged():
    state = state_of(trained(ELEMENT, 2))
    assert all(out is item for out, item in zip(grow_linears(state, shape(2), ELEMENT, ELEMENT, 0), state, strict=True))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ELEMENT, changed(ELEMENT, rank=4), r"linear\.rank 8 cannot grow to 4"),
        (ELEMENT, changed(ELEMENT, rank=33), r"linear\.rank 33 exceeds .*k_proj"),
        (ELEMENT, changed(ELEMENT, density=0.1), r"linear\.density: 1392 entries of .* cannot shrink to 409"),
        (ELEMENT, changed(ELEMENT, support="block"), r"linear\.support 'element' cannot become 'block'"),
        (ELEMENT, LINEAR_CONFIGS["low_rank"], r"linear\.name 'sparse_low_rank' cannot become 'low_rank'"),
        (
            LINEAR_CONFIGS["sparse_low_rank-block"],
            changed(LINEAR_CONFIGS["sparse_low_rank-block"], density=0.6),
            r"linear\.density cannot grow with linear\.support 'block'",
        ),
    ],
)
def test_what_is_no_growth_is_refused(old, new, message):
    with pytest.raises(UserError, match=message):
        list(grow_linears(state_of(trained(old, 2)), shape(2), old, new, 0))
