"""NorMuon against its algorithm in float64, around the orthogonalisation that test_muon compares with torch's."""

import pytest
import torch
from optim_drive import SHAPES, drive, gradients

from pretrain.optim.rules.muon import orthogonalise
from pretrain.optim.rules.normuon import NorMuon

LR, MU, BETA = 0.02, 0.95, 0.9


def reference(start, grads, nesterov, adjust):
    """The weight after each step: as released, or with the paper's step of RMS 0.2 lr."""
    W, B, v, (rows, cols) = start.double(), 0.0, 0.0, start.shape
    for G in grads:
        B = MU * B + (1 - MU) * G.double()
        U = orthogonalise((MU * B + (1 - MU) * G if nesterov else B).float(), 5).double()
        v = BETA * v + (1 - BETA) * (U**2).mean(1, keepdim=True)
        N = U / (v**0.5 + 1e-10)
        if adjust == "original":
            step = max(1, rows / cols) ** 0.5 * U.norm() / N.norm() * N
        else:
            step = 0.2 * (rows * cols) ** 0.5 / N.norm() * N
        W = (1 - LR * 0.5) * W - LR * step
        yield W


@pytest.mark.parametrize("nesterov", [True, False], ids=["nesterov", "plain"])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [*SHAPES, (48, 8)], ids=str)
def test_equals_the_algorithm(shape, adjust, nesterov):
    grads, start = gradients(shape, 12), gradients(shape, 1, seed=1)[0]
    config = NorMuon.Config(lr=LR, weight_decay=0.5, neuron_beta=BETA, nesterov=nesterov, adjust_lr_fn=adjust)
    found = drive(config, start, grads)
    for W, expected in zip(found, reference(start, grads, nesterov, adjust), strict=True):
        torch.testing.assert_close(W.double(), expected, rtol=1e-3, atol=2e-3)  # bf16 decides some last places


def test_each_step_has_rms_and_each_row_the_same_at_first():
    start = torch.zeros(24, 16)
    moved = drive(NorMuon.Config(lr=0.5, weight_decay=0.0), start, gradients((24, 16), 1))[0]
    torch.testing.assert_close(moved.square().mean(1).sqrt(), torch.full((24,), 0.1), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("moments", "tolerance"), [("bf16", 0.02), ("8bit", 0.1)])
def test_momentum_in_fewer_bits_follows_that_in_fp32(moments, tolerance):
    start, grads = torch.zeros(64, 48), gradients((64, 48), 6)
    wide, few = (drive(NorMuon.Config(weight_decay=0.0, moments=kind), start, grads)[-1] for kind in ("fp32", moments))
    assert 0 < (few - wide).norm() / wide.norm() < tolerance
