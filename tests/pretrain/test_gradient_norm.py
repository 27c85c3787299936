"""The gradient's norm at stage 0, in the log and in clipping, against float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pretrain.engine.zero import ZeroEngine


def engine_of(parameters, clip):
    """An engine whose DeepSpeed takes no step, so that clipped gradients can be read."""
    engine = object.__new__(ZeroEngine)
    engine.grad_clip = clip
    engine.deepspeed = SimpleNamespace(module=nn.ParameterList(parameters), step=lambda: None)
    return engine


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shapes", [[(300, 200), (64,)], [(31, 17)] * 40])
def test_the_norm_is_that_of_float64(dtype, shapes):
    random = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=random).to(dtype)
    before = [p.grad.double() for p in parameters]
    exact = torch.stack([gradient.square().sum() for gradient in before]).sum().sqrt().item()
    update = engine_of(parameters, 0.5)._update_whole(math.inf)
    assert update.applied
    assert update.grad_norm == pytest.approx(exact, rel=1e-5)
    along = sum((p.grad.double() * g).sum() for p, g in zip(parameters, before, strict=True)).item()
    # Clipped elements are rounded to their precision, to either side: along the gradient that averages out.
    assert along / exact == pytest.approx(0.5, rel=1e-3 if dtype == torch.bfloat16 else 1e-5)
