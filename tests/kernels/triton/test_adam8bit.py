from dataclasses import astuple

import pytest
import torch

from kernels.adam8bit import Adam8bitState, adam8bit_, adam8bit_direction, in_triton

SIZES = [(1,), (256,), (3000,), (33, 31)]  # tails, one block, several programs


def gradients(shape, dtype, steps):
    """Over nine decades within a block; the second block is 0 at first; one element is not finite once."""
    random = torch.Generator().manual_seed(0)
    n = torch.Size(shape).numel()
    found = [
        torch.randn(n, generator=random) * 10.0 ** torch.randint(-8, 1, (n,), generator=random) for _ in range(steps)
    ]
    for step, grad in enumerate(found):
        if step < 2:
            grad[256:512] = 0
    found[1][-1] = float("nan")
    return [grad.view(shape).to(dtype) for grad in found]


def both(monkeypatch, device, shape, dtype, grad_dtype, step_):
    """What the kernel and the reference make of the same steps: (tensor, state) each."""
    results = []
    for backend in ("triton", "torch"):
        monkeypatch.setenv("SPARLOW_KERNELS", backend)
        target = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)
        state = Adam8bitState.zeros_for(target)
        for step, grad in enumerate(gradients(shape, grad_dtype, 5), 1):
            step_(target, grad.to(device), state, step)
        results.append((target.cpu(), [tensor.cpu() for tensor in astuple(state)]))
    return results


def assert_equal(results):
    (target, state), (wanted, wanted_state) = results
    assert torch.equal(target, wanted)
    for found, expected in zip(state, wanted_state, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("eps_mode", ["torch", "galore"])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_updates_to_the_bit(shape, dtypes, eps_mode, device, monkeypatch):
    def step_(param, grad, state, step):
        adam8bit_(
            param, grad, state, lr=1e-2, betas=(0.9, 0.99), eps=1e-6, step=step, weight_decay=0.1, eps_mode=eps_mode
        )

    assert_equal(both(monkeypatch, device, shape, *(getattr(torch, d) for d in dtypes), step_))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_directions_to_the_bit(shape, dtype, device, monkeypatch):
    def step_(out, grad, state, step):
        adam8bit_direction(grad, state, out.fill_(float("nan")), betas=(0.9, 0.999), eps=1e-6, step=step)

    assert_equal(both(monkeypatch, device, shape, dtype, torch.float32, step_))


@pytest.mark.parametrize("key", [0, 12345, 2**32 - 6])
def test_rounds_stochastically_to_the_bit(key, device, monkeypatch):
    def step_(param, grad, state, step):
        adam8bit_(param, grad, state, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, step=step, key=key + step)

    results = both(monkeypatch, device, (3000,), torch.bfloat16, torch.bfloat16, step_)
    assert_equal(results)

    def nearest(param, grad, state, step):
        adam8bit_(param, grad, state, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, step=step)

    assert not torch.equal(
        results[0][0], both(monkeypatch, device, (3000,), torch.bfloat16, torch.bfloat16, nearest)[0][0]
    )


def test_rows_per_program_change_nothing(device, monkeypatch):
    def step_(param, grad, state, step):
        adam8bit_(param, grad, state, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, step=step, key=3)

    results = [both(monkeypatch, device, (3000,), torch.bfloat16, torch.float32, step_)[0]]
    monkeypatch.setattr(in_triton, "ROWS", 1)
    results.append(both(monkeypatch, device, (3000,), torch.bfloat16, torch.float32, step_)[0])
    assert_equal(results)


def test_autograd_learns_of_the_change(device):
    tensor, grad = torch.ones(300, device=device), torch.ones(300, device=device)
    state, before = Adam8bitState.zeros_for(tensor), tensor._version
    adam8bit_(tensor, grad, state, lr=0.1, betas=(0.9, 0.99), eps=1e-8, step=1)
    between = tensor._version
    assert between > before
    adam8bit_direction(grad, state, tensor, betas=(0.9, 0.99), eps=1e-8, step=2)
    assert tensor._version > between
