"""What every member of LINEARS must do."""

from contextlib import nullcontext

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from model.errors import UserError
from model.linear import LINEARS, LinearConfig, build_linear, require_matrices

IN, OUT = 23, 37
# Every member with settings that fit the small matrices here; a new member needs its line.
CONFIGS = {
    "dense": {},
    "low_rank": {"rank": 5, "alpha": 10.0},
    "sparse_low_rank": {"rank": 5, "alpha": 10.0, "density": 0.1},
    "sparse": {"density": 0.3},
    "cola": {"rank": 5},
}

pytestmark = pytest.mark.parametrize("kind", list(LINEARS))


def config_of(kind, **changes):
    return LINEARS[kind].Config(**{**CONFIGS[kind], **changes})


def make(kind, seed=0, name="layers.0.attention.q_proj", random_factors=True):
    linear = build_linear(config_of(kind), IN, OUT, name)
    linear.reset_parameters(seed)
    if random_factors:  # factors that start at zero would hide mistakes
        with torch.no_grad():
            for p in linear.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return linear


def test_forward_is_the_map_of_dense_weight(kind):
    linear = make(kind)
    if linear.not_a_matrix:
        with pytest.raises(TypeError, match=r"layers\.0\.attention\.q_proj has no dense weight"):
            linear.dense_weight()
        return
    weight = linear.dense_weight()
    assert weight.shape == (OUT, IN)
    assert weight.dtype == torch.float32
    assert not weight.requires_grad
    torch.testing.assert_close(linear(torch.eye(IN)).T, weight, rtol=1e-5, atol=1e-5)
    x = torch.randn(2, 3, IN, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear(x), x @ weight.T, rtol=1e-5, atol=1e-4)


def test_every_parameter_and_the_input_receive_gradient(kind):
    linear = make(kind)
    x = torch.ones(4, IN, requires_grad=True)
    linear(x).square().sum().backward()
    for name, parameter in linear.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert x.grad.any()


def test_fresh_linear_can_learn(kind):
    """At the start some parameter receives gradient, and whatever starts at zero does."""
    linear = make(kind, random_factors=False)
    linear(torch.randn(4, IN)).sum().backward()
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
    linear = build_linear(config_of(kind), IN, OUT, "q")
    for tensor in linear.state_dict().values():
        tensor.fill_(-7 if not tensor.is_floating_point() else float("nan"))
    linear.reset_parameters(0)
    for name, tensor in linear.state_dict().items():
        assert not (tensor == -7).any(), name
        assert tensor.isfinite().all(), name


def test_bf16_input_with_fp32_parameters(kind):
    linear = make(kind)
    x = torch.randn(8, IN, generator=torch.Generator().manual_seed(0))
    expected, found = linear(x), linear(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.02 * expected.norm()
    found.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in linear.parameters())


def test_counts_its_parameters_and_flops(kind):
    config = config_of(kind)
    assert LINEARS[kind].count_parameters(config, IN, OUT) == sum(p.numel() for p in make(kind).parameters())
    assert LINEARS[kind].training_flops(config, IN, OUT, 100) > 6 * 100 * 5 * IN
    with pytest.raises(UserError, match="no dense weights, since") if make(kind).not_a_matrix else nullcontext():
        require_matrices(config, "export", "use another")


def test_projectable_names_own_parameters(kind):
    linear = make(kind)
    assert set(linear.projectable) <= {name for name, _ in linear.named_parameters()}


def test_silent_at_zero_makes_the_map_zero_but_not_dead(kind):
    linear = make(kind)
    parameters = dict(linear.named_parameters())
    with torch.no_grad():
        for name in linear.silent_at_zero:
            parameters[name].zero_()
    assert not linear(torch.eye(IN)).any()
    linear(torch.randn(4, IN, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(parameters[name].grad.any() for name in linear.silent_at_zero)


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
        build_linear(config_of(kind, rank=24), IN, OUT, "layers.0.attention.q_proj")
