"""Muon against torch.optim.Muon."""

import pytest
import torch
from optim_drive import SHAPES, drive, gradients

from pretrain.optim.rules.muon import Muon


@pytest.mark.parametrize("nesterov", [True, False], ids=["nesterov", "plain"])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [*SHAPES, (48, 8)], ids=str)
def test_equals_torch(shape, adjust, nesterov):
    grads, start = gradients(shape, 12), gradients(shape, 1, seed=1)[0]
    W = start.clone().requires_grad_()
    peer = torch.optim.Muon([W], lr=0.02, weight_decay=0.5, nesterov=nesterov, adjust_lr_fn=adjust)
    config = Muon.Config(lr=0.02, weight_decay=0.5, nesterov=nesterov, adjust_lr_fn=adjust)
    for found, G in zip(drive(config, start, grads), grads, strict=True):
        W.grad = G.clone()
        peer.step()
        torch.testing.assert_close(found, W.detach(), rtol=1e-6, atol=1e-6)


def test_cautious_drops_what_disagrees_with_the_gradient():
    start, grads = torch.zeros(16, 24), gradients((16, 24), 3)
    seen = drive(Muon.Config(cautious=True, weight_decay=0.0), start, grads)
    moved = seen[2] - seen[1]
    assert (moved * grads[2] <= 0).all()
    assert 0 < (moved == 0).float().mean() < 0.5
