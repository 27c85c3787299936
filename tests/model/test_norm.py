import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from model.norm import RMSNorm, normalize


def drawn(dtype, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype).requires_grad_()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_training_normalizes_as_pytorch_does(dtype, tolerance):
    x, weight, grad = drawn(dtype, 3, 5, 48), drawn(dtype, 48), drawn(dtype, 5, 3, 48).detach().transpose(0, 1)
    ours, theirs = normalize(x, weight, 1e-5), F.rms_norm(x, (48,), weight, 1e-5)
    found, expected = (torch.autograd.grad(y, (x, weight), grad) for y in (ours, theirs))
    for one, other in zip((ours, *found), (theirs, *expected), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.detach().abs().max().item())


def test_gradients_are_those_of_finite_differences():
    x, weight = drawn(torch.float64, 2, 3, 4), drawn(torch.float64, 4)
    assert torch.autograd.gradcheck(lambda x, w: normalize(x, w, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(lambda x: normalize(x, weight.detach(), 1e-5), (x,))
    assert torch.autograd.gradcheck(lambda w: normalize(x.detach(), w, 1e-5), (weight,))


def test_training_in_bf16_keeps_no_wide_copy_of_the_input():
    norm, x, kept = RMSNorm(64, 1e-5), drawn(torch.bfloat16, 2, 8, 64), []
    norm.reset_parameters(0)
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.numel() * tensor.element_size()), lambda _: None):
        norm(x)
    assert sum(kept) == 2 * x.numel() + 2 * 64 + 4 * 16  # input, weight and one root per row


def test_the_weights_gradient_is_as_exact_as_a_sum_of_many_rows_can_be():
    x, weight, grad = drawn(torch.float32, 20_000, 8), drawn(torch.float32, 8), drawn(torch.float32, 8, 20_000).T
    (found,) = torch.autograd.grad(normalize(x, weight, 1e-5), weight, grad)
    wide = weight.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(normalize(x.detach().double(), wide, 1e-5), wide, grad.double())
    assert (found - exact).abs().max() < 1e-6 * exact.abs().max()
