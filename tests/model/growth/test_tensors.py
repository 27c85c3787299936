"""Growth of whole models: what every operator must do for every linear and support."""

import pytest
import torch
from growing import LINEAR_CONFIGS, copy_into, empty, logits, never_moved, outputs, trained
from memory import LiveMemory

from model.errors import UserError
from model.growth import GROWTH, GrowthOptions, plan_growth
from model.growth.tensors import grow_tensors
from model.linear.base import BaseLinear

linears = pytest.mark.parametrize("linear", LINEAR_CONFIGS.values(), ids=LINEAR_CONFIGS)
operators = pytest.mark.parametrize("operator", GROWTH)


def plan_of(operator, large=4, **options):
    sources = (0, 1, 1, 0) if operator == "source_layers" else ()
    return plan_growth(operator, 2, large, GrowthOptions(source_layers=sources, **options))


def grow(small, plan, linear, **changes):
    large, state = empty(linear, len(plan.source), **changes), small.state_dict()
    copy_into(large, grow_tensors(state, state.__getitem__, plan, linear))
    return large


def projections(block):
    return {name: module for name, module in block.named_modules() if isinstance(module, BaseLinear)}


@linears
@operators
def test_every_block_is_its_source_bit_for_bit(operator, linear):
    plan, small = plan_of(operator), trained(linear, 2)
    large = grow(small, plan, linear)
    for name in ("tok_embeddings.weight", "norm.weight", "lm_head.weight"):
        assert torch.equal(large.get_parameter(name), small.get_parameter(name))
    for i, block in enumerate(large.layers):
        source = small.layers[plan.source[i]]
        for norm in ("attention_norm", "ffn_norm"):
            assert torch.equal(getattr(block, norm).weight, getattr(source, norm).weight)
        assert len(projections(block)) == 7
        for name, projection in projections(block).items():
            wanted, zeroed = outputs(projections(source)[name]), ()
            if i in plan.silent and name in ("attention.o_proj", "feed_forward.down_proj"):
                wanted, zeroed = torch.zeros_like(wanted), projection.silent_at_zero
            else:
                assert wanted.any()
            assert torch.equal(outputs(projection), wanted), (i, name)
            for key, buffer in projection.named_buffers():
                expected = projections(source)[name].get_buffer(key) * (key not in zeroed)
                assert torch.equal(buffer, expected), (i, name, key)


@linears
@operators
def test_function_preserving_leaves_the_logits(operator, linear):
    small = trained(linear, 2)
    # An explicit list in the order 0, 1, 1, 0 has both first copies in their order.
    large = grow(small, plan_of(operator, function_preserving=True), linear)
    torch.testing.assert_close(logits(large), logits(small), rtol=1e-5, atol=1e-5)
    plain = logits(grow(small, plan_of(operator), linear))
    assert torch.allclose(plain, logits(small), rtol=1e-2, atol=1e-2) == (operator == "zero")


@linears
@pytest.mark.parametrize("function_preserving", [False, True])
@operators
def test_every_parameter_moves_within_two_steps(operator, function_preserving, linear):
    large = grow(trained(linear, 2), plan_of(operator, function_preserving=function_preserving), linear)
    still = never_moved(large.train())
    unseen = still.pop("tok_embeddings.weight", 0.0)  # rows of tokens that no batch held
    assert unseen < 0.6
    assert all(part < 0.01 for part in still.values()), still


@linears
def test_copies_of_one_layer_part_company(linear):
    """Silent copies of a layer start with one input, and so with one gradient; soon they differ."""
    large = grow(trained(linear, 2), plan_of("zero", 8), linear).train()
    never_moved(large, steps=4)
    names = [name for name, _ in large.layers[1].named_parameters()]
    for name in names:
        one, two, three = (large.layers[i].get_parameter(name) for i in (1, 2, 3))
        assert not torch.equal(one, two), name
        assert not torch.equal(two, three), name


def test_tied_embeddings_stay_tied():
    linear = LINEAR_CONFIGS["dense"]
    small = trained(linear, 2, tie_embeddings=True)
    large = grow(small, plan_of("zero"), linear, tie_embeddings=True)
    torch.testing.assert_close(logits(large), logits(small), rtol=1e-5, atol=1e-5)


@linears
def test_memory_peaks_at_little_more_than_the_grown_model(linear):
    """`read` stands for a file: what it returns is new memory."""
    plan, small = plan_of("stack", 12), trained(linear, 2).state_dict()
    with LiveMemory() as memory:
        large = empty(linear, 12)
        memory.forget()  # of building: what is measured is growth
        copy_into(large, grow_tensors(small, lambda name: small[name].clone(), plan, linear))
    whole = sum(tensor.nbytes for tensor in large.state_dict().values())
    assert memory.peak < 0.3 * whole
    one_linear = sum(tensor.nbytes for name, tensor in small.items() if "layers.0.feed_forward.down_proj." in name)
    largest = max(one_linear, *(tensor.nbytes for tensor in small.values()))
    with LiveMemory() as memory:
        for _name, tensor, *_ in grow_tensors(small, lambda name: small[name].clone(), plan, linear):
            del tensor
    assert memory.peak <= 1.2 * largest


def test_every_tensor_is_read_once():
    linear = LINEAR_CONFIGS["sparse_low_rank-element"]
    small, asked = trained(linear, 2).state_dict(), []

    def read(name):
        asked.append(name)
        return small[name]

    grown = [item.name for item in grow_tensors(small, read, plan_of("stack", 8), linear)]
    assert sorted(asked) == sorted(small)
    assert sorted(grown) == sorted(empty(linear, 8).state_dict())


def test_bf16_states_and_other_dtypes_of_the_grown_model():
    linear = LINEAR_CONFIGS["sparse_low_rank-element"]
    small = trained(linear, 2, param_dtype=torch.bfloat16)
    large = grow(small, plan_of("stack"), linear, param_dtype=torch.bfloat16)
    weight = small.layers[1].attention.q_proj.dense_weight()
    assert torch.equal(large.layers[3].attention.q_proj.dense_weight(), weight)
    assert large.layers[3].attention.q_proj.support.loc.dtype == torch.uint16


def test_a_state_of_another_depth_or_shape_is_refused():
    linear = LINEAR_CONFIGS["dense"]
    state = trained(linear, 3).state_dict()
    with pytest.raises(UserError, match=r"growth\.factor: .* layers 0, 1, 2, not 0 to 1"):
        list(grow_tensors(state, state.__getitem__, plan_of("stack"), linear))
    state = trained(linear, 2, tie_embeddings=True).state_dict()
    with pytest.raises(UserError, match=r"nothing for lm_head\.weight"):
        copy_into(empty(linear, 4), grow_tensors(state, state.__getitem__, plan_of("stack"), linear))
    state = trained(linear, 2, dim=32).state_dict()
    with pytest.raises(UserError, match=r"tok_embeddings\.weight has shape \(100, 32\), .* \(100, 64\)"):
        copy_into(empty(linear, 4), grow_tensors(state, state.__getitem__, plan_of("stack"), linear))


def test_a_damaged_support_is_found():
    linear = LINEAR_CONFIGS["sparse_low_rank-element"]
    state = trained(linear, 2).state_dict()
    loc = "layers.1.attention.k_proj.support.loc"
    state[loc] = torch.zeros_like(state[loc])
    with pytest.raises(UserError, match=r"layers\.1\.attention\.k_proj\.support: .*damaged"):
        copy_into(empty(linear, 4), grow_tensors(state, state.__getitem__, plan_of("stack"), linear))
