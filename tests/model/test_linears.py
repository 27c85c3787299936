"""What every member of LINEARS must do."""

from contextlib import nullcontext

import pytest
import torch
from linears import CONFIGS, config_of, inputs, make, size_of
from pydantic import TypeAdapter, ValidationError

from model.errors import UserError
from model.linear import LINEARS, LinearConfig, build_linear, require_matrices

pytestmark = pytest.mark.parametrize("kind", list(LINEARS))


def test_forward_is_the_map_of_dense_weight(kind):
    linear, (n_in, n_out) = make(kind), size_of(kind)
    if linear.not_a_matrix:
        with pytest.raises(TypeError, match=r"layers\.0\.attention\.q_proj has no dense weight"):
            linear.dense_weight()
        return
    weight = linear.dense_weight()
    assert weight.shape == (n_out, n_in)
    assert weight.dtype == torch.float32
    assert not weight.requires_grad
    torch.testing.assert_close(linear(torch.eye(n_in)).T, weight, rtol=1e-5, atol=1e-5)
    x = inputs(kind, 2, 3)
    torch.testing.assert_close(linear(x), x @ weight.T, rtol=1e-5, atol=1e-4)


def test_every_parameter_and_the_input_receive_gradient(kind):
    linear = make(kind)
    x = torch.ones(4, size_of(kind)[0], requires_grad=True)
    linear(x).square().sum().backward()
    for name, parameter in linear.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert x.grad.any()


def test_fresh_linear_can_learn(kind):
    """At the start some parameter receives gradient, and whatever starts at zero does."""
    linear = make(kind, random_factors=False)
    linear(inputs(kind, 4)).sum().backward()
    assert any(p.grad.any() for p in linear.parameters())
    assert all(p.grad.any() for p in linear.parameters() if not p.any())


def test_initial_values_depend_on_seed_and_name_alone(kind):
    first, again = make(kind, random_factors=False), make(kind, random_factors=False)
    torch.rand(3)
    other_seed = make(kind, seed=1, random_factors=False)
    other_name = make(kind, name="layers.1.attention.q_proj", random_factors=False)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        if tensor.any() and not name.endswith("tile_ptr"):  # one tile: its length is no matter of chance
            assert not torch.equal(tensor, other_seed.state_dict()[name]), name
            assert not torch.equal(tensor, other_name.state_dict()[name]), name


def test_reset_leaves_nothing_as_it_was(kind):
    linear = build_linear(config_of(kind), *size_of(kind), "q")
    for tensor in linear.state_dict().values():
        tensor.fill_(-7 if not tensor.is_floating_point() else float("nan"))
    linear.reset_parameters(0)
    for name, tensor in linear.state_dict().items():
        assert not (tensor == -7).any(), name
        assert tensor.isfinite().all(), name


def test_bf16_input_with_fp32_parameters(kind):
    linear = make(kind)
    x = inputs(kind, 8)
    expected, found = linear(x), linear(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.02 * expected.norm()
    found.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in linear.parameters())


def test_counts_its_parameters_and_flops(kind):
    config, linear = config_of(kind), make(kind)
    assert LINEARS[kind].count_parameters(config, *size_of(kind)) == sum(p.numel() for p in linear.parameters())
    frozen = [buffer for buffer in linear.buffers() if buffer.is_floating_point()]
    assert LINEARS[kind].count_frozen(config, *size_of(kind)) == sum(buffer.numel() for buffer in frozen)
    assert LINEARS[kind].training_flops(config, *size_of(kind), 100) > 6 * 100 * 5 * size_of(kind)[0]
    with pytest.raises(UserError, match="no dense weights, since") if linear.not_a_matrix else nullcontext():
        require_matrices(config, "export", "use another")


def test_projectable_names_own_parameters(kind):
    linear = make(kind)
    assert set(linear.projectable) <= {name for name, _ in linear.named_parameters()}


def test_silent_at_zero_makes_the_map_zero_but_not_dead(kind):
    linear = make(kind)
    if not linear.silent_at_zero:
        return
    tensors, parameters = linear.state_dict(), dict(linear.named_parameters())
    for name in linear.silent_at_zero:
        tensors[name].zero_()
    assert not linear(torch.eye(size_of(kind)[0])).any()
    linear(inputs(kind, 4)).sum().backward()
    trained = parameters.keys() & set(linear.silent_at_zero)
    assert trained
    assert all(parameters[name].grad.any() for name in trained)


def test_config_is_found_by_its_name_and_refuses_unknown_keys(kind):
    adapter = TypeAdapter(LinearConfig)
    assert adapter.validate_python({"name": kind, **CONFIGS[kind]}) == config_of(kind)
    with pytest.raises(ValidationError, match="dropout"):
        adapter.validate_python({"name": kind, "dropout": 0.1})


def test_every_field_is_documented_and_validated(kind):
    fields = LINEARS[kind].Config.model_fields
    assert all(field.description for name, field in fields.items() if name != "name")
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"density": 0.0}, {"density": 1.0}, {"support": "blocks"}):
        with pytest.raises(ValidationError):
            config_of(kind, **wrong)


def test_rank_beyond_the_matrix_names_key_and_module(kind):
    if "rank" not in LINEARS[kind].Config.model_fields:
        return
    with pytest.raises(UserError, match=r"linear\.rank 24 .*q_proj.* at most 23"):
        build_linear(config_of(kind, rank=24), *size_of(kind), "layers.0.attention.q_proj")
