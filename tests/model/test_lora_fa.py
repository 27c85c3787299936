"""LoRA-FA: LoRA's map, of which B alone trains, and no input is kept."""

import torch

from model.linear import Lora, LoraFA, build_linear

NAME = "layers.0.attention.q_proj"


def pair():
    linears = [build_linear(kind.Config(rank=4, alpha=3.0), 23, 37, NAME) for kind in (Lora, LoraFA)]
    for linear in linears:
        linear.reset_parameters(0)
        with torch.no_grad():
            linear.B.normal_(generator=torch.Generator().manual_seed(1))
    return linears


def test_it_is_lora_but_for_the_gradient_of_a():
    lora, frozen = pair()
    assert lora.state_dict().keys() == frozen.state_dict().keys()
    assert {name for name, _ in frozen.named_parameters()} == {"B"}
    inputs = [torch.randn(5, 23, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2)]
    outputs = [linear(x) for linear, x in zip((lora, frozen), inputs, strict=True)]
    assert torch.equal(*outputs)
    for y in outputs:
        y.square().sum().backward()
    assert torch.equal(lora.B.grad, frozen.B.grad)
    assert torch.equal(inputs[0].grad, inputs[1].grad)


def test_no_input_is_kept_for_the_backward_pass():
    for linear, kept in zip(pair(), (True, False), strict=True):
        x, seen = torch.randn(5, 23).requires_grad_(), []

        def pack(tensor, seen=seen):
            seen.append(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            linear(x)
        assert (x.data_ptr() in seen) == kept


def test_flops_leave_out_the_gradients_of_what_is_frozen():
    flops = LoraFA.training_flops(LoraFA.Config(rank=4), 23, 37, 10)
    assert flops == 10 * (4 * 23 * 37 + 4 * 4 * 23 + 6 * 4 * 37)
