import math

import pytest
import torch

from kernels.adam8bit import Adam8bitState, adam8bit_, adam8bit_direction, reference
from kernels.adam8bit.reference import hyper_parameters
from kernels.adam8bit.state import ZERO_SIGNED, codebook, dynamic_map

ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}


def gradients(n, steps, seed=0):
    """Over four decades, as those of a model."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=random) * torch.logspace(-4, 0, n) for _ in range(steps)]


def test_codebooks_have_the_published_constants():
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    for values in (signed, unsigned):
        assert values.shape == (256,)
        assert (values.diff() > 0).all()
        assert values[-1] == 1
    assert signed[ZERO_SIGNED] == 0
    assert unsigned[0] == 0
    # bitsandbytes' create_dynamic_map
    assert signed[[0, 126, 128, 254]].tolist() == pytest.approx([-0.99296875, -5.5e-7, 5.5e-7, 0.99296875], rel=1e-7)
    assert unsigned[[1, 2, 254]].tolist() == pytest.approx([3.25e-7, 7.75e-7, 0.996484375], rel=1e-7)
    assert torch.equal(signed[:127].flip(0).neg(), signed[128:255])


@pytest.mark.parametrize("signed", [True, False])
def test_codebook_is_midpoints_of_equal_intervals_in_seven_decades(signed):
    exact = {0.0, 1.0}
    for decade in range(7):
        n = 2 ** (decade + (not signed))
        for i in range(n):
            middle = (0.1 + 0.9 * (i + 0.5) / n) * 10 ** (decade - 6)
            exact |= {middle, -middle} if signed else {middle}
    expected = torch.tensor(sorted(exact), dtype=torch.float64)
    assert torch.allclose(dynamic_map(signed).double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("signed", [True, False])
def test_quantising_takes_the_nearest_code(signed):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2000, generator=random) * 10.0 ** torch.randint(-8, 1, (2000,), generator=random)
    x = x if signed else x.abs()
    codes, absmax = reference.quantise(x, signed)
    relative = x.double() / absmax.repeat_interleave(256)[:2000]
    distance = (relative.unsqueeze(1) - dynamic_map(signed).double()).abs()
    chosen = distance.gather(1, codes.long().unsqueeze(1)).squeeze(1)
    free = ~((codes == ZERO_SIGNED - 1) & signed)  # negative values do not become 0
    assert (chosen <= distance.amin(1) * (1 + 1e-6) + 1e-13)[free].all()
    assert (chosen <= distance[:, : ZERO_SIGNED + (not signed)].amin(1) * (1 + 1e-6))[~free].all()
    assert codes.unique().numel() > 200


def test_exp_avg_keeps_its_sign():
    """As in bitsandbytes: a negative value never becomes 0; a positive one, never negative."""
    x = torch.tensor([1.0, -1e-7, 1e-7, -1e-30, 1e-30, 0.0, -0.0, -4e-7])
    codes, absmax = reference.quantise(x, True)
    assert codes.tolist() == [255, 126, 127, 126, 127, 127, 127, 126]
    restored = reference.dequantise(codes, absmax, True)
    assert (restored[x < 0] < 0).all()
    assert (restored[x >= 0] >= 0).all()


def test_quantising_is_idempotent_and_exact_at_the_codes():
    for signed in (True, False):
        codes, absmax = reference.quantise(dynamic_map(signed) * 2.0**-9, signed)
        assert codes.tolist() == list(range(256))
        assert torch.equal(reference.dequantise(codes, absmax, signed), dynamic_map(signed) * 2.0**-9)


@pytest.mark.parametrize("eps_mode", ["torch", "galore"])
def test_first_step_is_that_of_adam_in_fp32(eps_mode):
    """The update uses the moments before they are quantised, and the first ones start from an exact 0."""
    (grad,) = gradients(700, 1)
    param = torch.randn(700, generator=torch.Generator().manual_seed(1))
    ours, exact = param.clone(), param.double()
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-3, "step": 1, "weight_decay": 0.1}
    adam8bit_(ours, grad, Adam8bitState.zeros_for(grad), eps_mode=eps_mode, **settings)
    g = grad.double()
    if eps_mode == "torch":
        exact = (1 - 1e-3) * exact - 1e-2 * g / (g.abs() + 1e-3)
    else:  # eps joins the uncorrected root
        exact = (1 - 1e-3) * exact - 1e-2 * math.sqrt(0.01) / 0.1 * (0.1 * g) / (math.sqrt(0.01) * g.abs() + 1e-3)
    assert (ours - exact).abs().max() <= 2e-7 * exact.abs().max()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_follows_fp32_adamw(weight_decay):
    param = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    ours, theirs = param.clone(), param.clone().requires_grad_()
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=weight_decay, **ADAM)
    state = Adam8bitState.zeros_for(ours)
    for step, grad in enumerate(gradients(5000, 30), 1):
        adam8bit_(ours, grad, state, lr=1e-2, step=step, weight_decay=weight_decay, **ADAM)
        theirs.grad = grad
        optimizer.step()
    moved = (theirs.detach() - param).norm()
    assert (ours - theirs.detach()).norm() <= 0.05 * moved


def test_minimises_a_quadratic():
    target = torch.randn(600, generator=torch.Generator().manual_seed(2))
    param = torch.zeros(600)
    state = Adam8bitState.zeros_for(param)
    for step in range(1, 301):
        adam8bit_(param, param - target, state, lr=0.05 * (1 - step / 301), step=step, **ADAM)
    assert (param - target).norm() <= 1e-2 * target.norm()


def test_bf16_parameter_is_rounded_once():
    grad = gradients(1000, 1)[0].bfloat16()
    param = torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide = param.float()
    adam8bit_(wide, grad, Adam8bitState.zeros_for(grad), lr=1e-3, step=1, **ADAM)
    adam8bit_(param, grad, Adam8bitState.zeros_for(grad), lr=1e-3, step=1, **ADAM)
    assert torch.equal(param, wide.bfloat16())


def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average():
    grad = torch.ones(4096)
    mean = torch.zeros(4096)
    for key in range(64):
        param = torch.ones(4096).bfloat16()
        adam8bit_(param, grad, Adam8bitState.zeros_for(grad), lr=1e-3, step=1, key=key * 7919, **ADAM)
        assert set(param.unique().tolist()) <= {1.0, 1 - 2.0**-8}
        mean += param.float() / 64
    # 64 * 4096 draws of 2^-8 with probability p: four standard deviations.
    p = 1e-3 * 2**8
    assert abs(mean.mean() - (1 - 1e-3)) <= 4 * 2**-8 * math.sqrt(p * (1 - p) / (64 * 4096))
    again = torch.ones(4096).bfloat16()
    adam8bit_(again, grad, Adam8bitState.zeros_for(grad), lr=1e-3, step=1, key=63 * 7919, **ADAM)
    assert torch.equal(again, param)


def test_blocks_do_not_see_each_other():
    """A flat buffer whose parts start at multiples of 256 steps as the parts would alone."""
    parts = [gradients(512, 3, seed=1), gradients(300, 3, seed=2)]
    alone = [(torch.ones(n), Adam8bitState.zeros_for(torch.empty(n))) for n in (512, 300)]
    flat, state = torch.ones(812), Adam8bitState.zeros_for(torch.empty(812))
    for step in range(1, 4):
        for (param, own), grads in zip(alone, parts, strict=True):
            adam8bit_(param, grads[step - 1], own, lr=0.1, step=step, **ADAM)
        adam8bit_(flat, torch.cat([grads[step - 1] for grads in parts]), state, lr=0.1, step=step, **ADAM)
    assert torch.equal(flat, torch.cat([param for param, _ in alone]))
    for name in ("exp_avg", "exp_avg_sq", "exp_avg_absmax", "exp_avg_sq_absmax"):
        assert torch.equal(getattr(state, name), torch.cat([getattr(own, name) for _, own in alone]))


def test_all_zero_blocks_stay_exactly_zero():
    param, grad = torch.ones(600), torch.zeros(600)
    grad[300:] = 1.0
    state = Adam8bitState.zeros_for(param)
    for step in (1, 2):
        adam8bit_(param, grad, state, lr=0.1, step=step, **ADAM)
    assert (param[:300] == 1).all()
    assert (param[300:] < 1).all()
    assert state.exp_avg_absmax[0] == state.exp_avg_sq_absmax[0] == 0
    assert (state.exp_avg[:300] == ZERO_SIGNED).all()
    assert not state.exp_avg_sq[:300].any()


def test_scales_too_small_to_invert_count_as_zero():
    codes, absmax = reference.quantise(torch.tensor([1e-40, -1e-40, 0.0]), True)
    assert codes.tolist() == [ZERO_SIGNED, ZERO_SIGNED - 1, ZERO_SIGNED]
    assert reference.dequantise(codes, absmax, True).abs().max() <= 1e-44
    assert absmax.item() == pytest.approx(1e-40, rel=1e-4)
    param, state = torch.ones(3), Adam8bitState.zeros_for(torch.empty(3))
    for step in (1, 2):  # the square of the gradient is subnormal
        adam8bit_(param, torch.tensor([1e-19, 0.0, -1e-19]), state, lr=1.0, step=step, **ADAM)
    assert torch.allclose(param, torch.ones(3), rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_gradient_that_is_not_finite_resets_its_element_alone(bad):
    first, second = gradients(600, 2)
    param = torch.ones(600)
    state = Adam8bitState.zeros_for(param)
    adam8bit_(param, first, state, lr=0.1, step=1, **ADAM)
    before = param.clone()
    second[10] = bad
    adam8bit_(param, second, state, lr=0.1, step=2, **ADAM)
    assert param[10] == before[10]
    assert (state.exp_avg[10], state.exp_avg_sq[10]) == (ZERO_SIGNED, 0)
    others = torch.arange(600) != 10
    assert (param != before)[others].all()
    assert param.isfinite().all()


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_empty_tensors(shape):
    param = torch.ones(shape)
    state = Adam8bitState.zeros_for(param)
    adam8bit_(param, param, state, lr=0.1, step=1, **ADAM)
    adam8bit_direction(param, state, param, step=1, **ADAM)
    assert (
        reference.adam8bit_direction(
            param, state, hyper_parameters(0.0, (0.9, 0.99), 1e-8, 1, 0.0, "torch", param.device)
        ).shape
        == shape
    )


def test_shapes_are_flat_order_and_a_transposed_gradient_is_understood():
    grad = gradients(33 * 17, 1)[0].view(17, 33).t()
    assert not grad.is_contiguous()
    for wanted in (grad, grad.contiguous()):
        param, state = torch.ones(33, 17), Adam8bitState.zeros_for(grad)
        assert state.exp_avg.is_contiguous()
        adam8bit_(param, wanted, state, lr=0.1, step=1, **ADAM)
        flat, flat_state = torch.ones(33 * 17), Adam8bitState.zeros_for(torch.empty(33 * 17))
        adam8bit_(flat, grad.flatten(), flat_state, lr=0.1, step=1, **ADAM)
        assert torch.equal(param.flatten(), flat)
        assert torch.equal(state.exp_avg.flatten(), flat_state.exp_avg)


def test_direction_is_the_update_without_the_learning_rate():
    param, out = torch.zeros(700), torch.empty(700)
    one, two = Adam8bitState.zeros_for(param), Adam8bitState.zeros_for(param)
    for step, grad in enumerate(gradients(700, 3), 1):
        param.zero_()
        adam8bit_(param, grad, one, lr=1.0, step=step, **ADAM)
        adam8bit_direction(grad, two, out, step=step, **ADAM)
        assert torch.equal(param, -out)
        assert torch.equal(one.exp_avg, two.exp_avg)
        assert torch.equal(one.exp_avg_sq, two.exp_avg_sq)


def test_takes_two_bytes_per_element_and_scales():
    state = Adam8bitState.zeros_for(torch.empty(1000, 3))
    tensors = (state.exp_avg, state.exp_avg_sq, state.exp_avg_absmax, state.exp_avg_sq_absmax)
    assert sum(t.nbytes for t in tensors) == 2 * 3000 + 2 * 4 * 12


def test_betas_may_be_a_list_as_optimizers_have_them_after_loading():
    results = []
    for betas in ((0.9, 0.99), [0.9, 0.99]):
        param = torch.ones(300)
        state = Adam8bitState.zeros_for(param)
        adam8bit_(param, torch.linspace(-1, 1, 300), state, lr=0.1, betas=betas, eps=1e-8, step=1)
        results.append(param)
    assert torch.equal(*results)


def test_hyper_parameters_are_shared_by_the_tensors_of_a_step():
    device = torch.device("cpu")
    arguments = (1e-3, (0.9, 0.999), 1e-8, 5, 0.0, "torch", device)
    assert hyper_parameters(*arguments) is hyper_parameters(*arguments)
    assert codebook(True, device) is codebook(True, device)


def test_bad_input_is_refused():
    x = torch.ones(4, 4)
    state = Adam8bitState.zeros_for(x)
    good = {"lr": 0.1, "step": 1, **ADAM}
    with pytest.raises(ValueError, match="differ"):
        adam8bit_(x, x[:2], state, **good)
    with pytest.raises(ValueError, match="contiguous"):
        adam8bit_(x.t(), x, state, **good)
    with pytest.raises(ValueError, match="bf16"):
        adam8bit_(x, x, state, key=1, **good)
    with pytest.raises(ValueError, match="key"):
        adam8bit_(x.bfloat16(), x, state, key=2**32, **good)
    with pytest.raises(ValueError, match="eps"):
        adam8bit_(x, x, state, **good | {"eps": 0.0})
    with pytest.raises(ValueError, match="eps_mode"):
        adam8bit_(x, x, state, eps_mode="hf", **good)
    with pytest.raises(ValueError, match="step"):
        adam8bit_(x, x, state, **good | {"step": 0})
    assert torch.equal(x, torch.ones(4, 4))
