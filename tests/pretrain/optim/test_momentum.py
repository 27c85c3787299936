"""Momentum of a matrix in fp32, bf16 and 8 bits."""

import pytest
import torch
from optim_drive import gradients

from pretrain.optim import momentum
from pretrain.optim.momentum import advance_momentum, init_momentum

CPU = torch.device("cpu")


@pytest.mark.parametrize(("moments", "tolerance"), [("fp32", 1e-6), ("bf16", 0.01), ("8bit", 0.03)])
@pytest.mark.parametrize("shape", [(24, 40), (3, 5)], ids=str)
def test_follows_the_mean_in_float64(moments, tolerance, shape):
    state, expected = init_momentum(moments, shape, CPU), torch.zeros(shape).double()
    like = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    for G in gradients(shape, 12):
        found, expected = advance_momentum(state, G, 0.9), 0.9 * expected + 0.1 * G.double()
        assert found.dtype == torch.float32
        assert (found - expected).norm() < tolerance * expected.norm()
    assert like == {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_in_8_bits_it_takes_a_byte_and_the_scales():
    state = init_momentum("8bit", (64, 64), CPU)
    assert sum(tensor.nbytes for tensor in state.values()) == 4096 + 4 * 4096 // 256
    assert not advance_momentum(state, torch.zeros(64, 64), 0.9).any()


def test_by_parts_it_is_the_same(monkeypatch):
    found = []
    for part in (momentum.PART, 512):
        monkeypatch.setattr(momentum, "PART", part)
        state = init_momentum("8bit", (30, 40), CPU)
        found.append([advance_momentum(state, G, 0.95) for G in gradients((30, 40), 3)] + list(state.values()))
    assert all(map(torch.equal, *found))
