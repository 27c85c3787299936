"""Linears whose products are in eight bits: near the plain ones in training, and the plain ones in evaluation."""

import pytest
import torch
from int8_drive import int8_linear
from linears import CONFIGS, config_of, inputs, make

from kernels.code_product import group_product
from kernels.eight_bit_linear import EightBit
from kernels.row_codes import quantize_rows
from kernels.sparse_low_rank_linear import Choice
from model.build import build_model, shape_of_model
from model.config import ModelConfig
from model.linear import LINEARS
from model.linear.base import BaseLinear

MULTIPLY = [kind for kind in CONFIGS if LINEARS[kind].multiplies_matrix(config_of(kind))]
HOWS = [EightBit("int8"), EightBit("int8", True), EightBit("fp8"), EightBit("fp8", True)]
every_how = pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.format}{'-all' * how.weight_gradient_too}")


def run(linear, x):
    """The output, and the gradients of the input and of every parameter."""
    linear.zero_grad()
    x = x.clone().requires_grad_()
    y = linear(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    (y * g).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in linear.parameters())]


def relative(found, exact):
    return float((found - exact).norm() / exact.norm())


def test_which_linears_multiply_with_a_matrix():
    assert MULTIPLY == ["dense", "sparse_low_rank", "sparse", "lora", "lora_fa", "relora", "poet"]
    assert not LINEARS["sparse_low_rank"].multiplies_matrix(config_of("sparse_low_rank", support="block"))


@every_how
@pytest.mark.parametrize("kind", MULTIPLY)
def test_output_and_gradients_are_near_the_plain_ones(kind, how):
    linear, x = make(kind), inputs(kind, 3, 40)
    plain = run(linear, x)
    linear.eight_bit = how
    bound = 0.03 if how.format == "int8" else 0.06
    for found, exact in zip(run(linear, x), plain, strict=True):
        assert found.dtype == exact.dtype
        assert relative(found, exact) < 2 * bound
    assert not torch.equal(run(linear, x)[0], plain[0])


@pytest.mark.parametrize("kind", MULTIPLY)
def test_evaluation_multiplies_plainly(kind):
    linear, x = make(kind).eval(), inputs(kind, 4)
    plain = linear(x)
    linear.eight_bit = EightBit("int8")
    assert torch.equal(linear(x), plain)
    assert not torch.equal(linear.train()(x), plain)


@every_how
def test_however_long_codes_are_kept_the_bits_are_the_same(how):
    linear, x = make("sparse_low_rank"), inputs("sparse_low_rank", 3, 40)
    linear.eight_bit = how
    found = []
    for keep in ("none", "layer", "step"):
        linear.support.choice = Choice(keep=keep)
        found.append(run(linear, x))
        found.append(run(linear, x))  # once more, of what a step has kept
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert torch.equal(a, b)


def test_kept_codes_are_not_what_evaluation_multiplies_with():
    linear, x = make("sparse_low_rank"), inputs("sparse_low_rank", 4)
    linear.support.choice = Choice(keep="step")
    plain = linear.eval()(x)
    linear.eight_bit = EightBit("int8")
    trained = linear.train()(x)
    assert not torch.equal(trained, plain)
    assert torch.equal(linear.eval()(x), plain)
    assert torch.equal(linear.train()(x), trained)


def test_summed_gradients_are_those_of_single_micro_steps():
    linear, x = make("sparse_low_rank"), inputs("sparse_low_rank", 40)
    linear.eight_bit = EightBit("int8", True)
    apart = [sum(pair) for pair in zip(*(run(linear, part)[2:] for part in (x, x + 1)), strict=True)]
    linear.support.choice = Choice(keep="step", accumulate=True)
    linear.zero_grad()
    for last, part in ((False, x), (True, x + 1)):
        linear.support.cache.last_micro_step = last
        y = linear(part)
        (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    for found, exact in zip((p.grad for p in linear.parameters()), apart, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-4)


def test_a_low_rank_part_beside_large_sparse_entries_is_heard():
    """To nearest, numbers below half a step of the largest entry in their row would be none."""
    linear = make("sparse_low_rank")
    with torch.no_grad():
        linear.values.zero_()
        low_rank = linear.dense_weight()
        linear.B.mul_(1e-3 / low_rank.abs().max())  # half a step is 4e-3
        low_rank, beside = linear.dense_weight(), torch.ones(low_rank.shape, dtype=torch.bool)
        beside.view(-1)[linear.support.flat().long()] = False
        beside &= ~beside.all(1, keepdim=True)  # rows without a large entry have a finer step
    linear.eight_bit, turns = EightBit("int8"), 400
    heard = torch.zeros_like(low_rank)
    for turn in range(turns):
        with torch.no_grad():
            linear.values.fill_(1 + turn / 1000)  # other scales, so other bits
            heard += linear(torch.eye(linear.in_features)).t() / turns
    part = (heard[beside] @ low_rank[beside]) / low_rank[beside].square().sum()
    assert part == pytest.approx(1, abs=0.1)


@every_how
def test_weights_in_codes(how):
    linear = int8_linear(torch.randn(24, 300, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(50, 300, generator=torch.Generator().manual_seed(2))
    gradients = []
    linear.sink = gradients.append
    plain = run(linear, x)
    linear.eight_bit = how
    found = run(linear, x)
    for ours, exact in zip((*found, gradients[1]), (*plain, gradients[0]), strict=True):
        assert relative(ours, exact) < 0.05
    if how.format == "int8":
        assert torch.equal(found[0], group_product(quantize_rows(x, "int8"), linear.quantized, torch.float32))
    assert torch.equal(gradients[0], gradients[1]) != how.weight_gradient_too
    assert torch.equal(linear.eval()(x), plain[0])


@every_how
@pytest.mark.parametrize(
    "linear", [config_of("dense"), config_of("sparse_low_rank", rank=16)], ids=lambda linear: linear.name
)
def test_a_models_gradient_is_the_plain_one_but_for_noise(linear, how):
    """A few per cent off it, and neither longer nor shorter along it, through all its layers."""
    shape = ModelConfig(dim=64, n_layers=2, n_heads=2, ffn_dim=128, vocab_size=64)
    tokens = torch.randint(64, (8, 32), generator=torch.Generator().manual_seed(1))

    def gradient(eight_bit):
        plain = {"device": "cpu", "param_dtype": torch.float32, "compute_dtype": torch.float32}
        model = build_model(shape, linear, seed=0, **plain, eight_bit=eight_bit)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith(".B"):  # zero in a fresh model, and A has no gradient
                    p.normal_(std=0.05, generator=torch.Generator().manual_seed(p.shape[0]))
        model(tokens, tokens.roll(-1, 1)).backward()
        return torch.cat([p.grad.flatten() for name, p in model.named_parameters() if "norm" not in name])

    exact, found = gradient(None), gradient(how)
    assert 1e-3 < relative(found, exact) < (0.04 if how.format == "int8" else 0.08)
    assert found @ exact / exact.square().sum() == pytest.approx(1, abs=0.01)


def test_every_linear_of_a_model_is_told():
    shape = ModelConfig(dim=32, n_layers=2, n_heads=2, ffn_dim=48, vocab_size=64)
    for int8 in (False, True):
        model = shape_of_model(shape, LINEARS["dense"].Config(), int8=int8, eight_bit=EightBit("fp8"))
        linears = [module for module in model.modules() if isinstance(module, BaseLinear)]
        assert len(linears) == 14
        assert {linear.eight_bit for linear in linears} == {EightBit("fp8")}
