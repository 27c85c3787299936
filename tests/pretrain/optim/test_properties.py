"""Whatever the shape, rank, side and dtype: weights move and stay finite, shapes stay, state is what it should be."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_drive import optimizer_of
from torch import nn

from pretrain.optim.rules import PRESETS

FORMULA = {"galore_adamw": 2, "fira": 2, "golore": 2, "sara": 2, "apollo": 2}
"""Presets whose state is so many moments of (rank, larger side) and a basis (smaller side, rank), in fp32."""


@st.composite
def problems(draw):
    rows, cols = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    name = draw(st.sampled_from(sorted(PRESETS)))
    fields = {"rank": draw(st.integers(1, min(rows, cols))), "update_proj_gap": draw(st.integers(1, 5))}
    fields["weights"] = draw(st.sampled_from(["fp32_master", "bf16", "bf16_stochastic"]))
    fields["refresh_stagger"] = draw(st.booleans())
    return name, PRESETS[name].Config(**fields), (rows, cols), draw(st.integers(0, 1000))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(problems())
def test_every_preset_on_any_matrix(problem):
    name, config, shape, seed = problem
    random = torch.Generator().manual_seed(seed)
    dtype = torch.float32 if config.weights == "fp32_master" else torch.bfloat16
    weight = nn.Parameter(torch.randn(shape, generator=random).to(dtype))
    optimizer = optimizer_of(config, weight)
    shapes = {key: tensor.shape for key, _, tensor, _ in optimizer.tensors()}
    for _ in range(4):
        gradient = torch.randn(shape, generator=random)
        (weight * gradient.to(dtype)).sum().backward()
        if weight.grad is not None:
            assert weight.grad.shape == shape
        optimizer.step()
        assert optimizer.applied
        assert weight.shape == shape
        assert torch.isfinite(weight).all()
        for key, _, tensor, _ in optimizer.tensors():
            assert tensor.shape == shapes[key]
            assert not tensor.is_floating_point() or not tensor.isnan().any(), key
    if name in FORMULA and config.moments == "fp32":
        large, small = max(shape), min(shape)
        matrices = sum(t.nbytes for _, _, t, _ in optimizer.tensors() if t.dim() == 2)
        assert matrices == 4 * config.rank * (FORMULA[name] * large + small)
