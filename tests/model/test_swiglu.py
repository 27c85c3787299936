import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from model.swiglu import swiglu


def drawn(dtype, *shape):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=random).to(dtype).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_autograd_bit_for_bit(dtype):
    inputs = drawn(dtype, 3, 7, 50)
    ours, theirs = swiglu(*inputs), F.silu(inputs[0]) * inputs[1]
    grad = torch.randn(7, 3, 50, generator=torch.Generator().manual_seed(1)).to(dtype).transpose(0, 1)
    assert torch.equal(ours, theirs)
    for one, other in zip(*(torch.autograd.grad(y, inputs, grad) for y in (ours, theirs)), strict=True):
        assert torch.equal(one, other)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(swiglu, drawn(torch.float64, 2, 3, 4))


def test_the_backward_pass_is_left_its_inputs_alone():
    inputs, kept = drawn(torch.float32, 2, 3, 4), []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda _: None):
        swiglu(*inputs)
    assert kept == [tensor.data_ptr() for tensor in inputs]
