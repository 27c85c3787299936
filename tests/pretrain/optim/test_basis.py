"""Bases in fewer bits: what they take, what of them comes back, and which presets train with them."""

import pytest
import torch
from optim_drive import drive, gradients, optimizer_of
from support import check_optimizer
from torch import nn
from toy_problem import remaining_error

from model.errors import UserError
from pretrain.optim.rules import PRESETS
from pretrain.optim.target import Basis

FEW_BITS = ["bf16", "int8", "int4"]
EXACT = {"fira", "frugal"}
"""They train with what the basis leaves out."""
KEEPS_ONE = {name for name, preset in PRESETS.items() if preset.uses_basis}


def basis(m, rank, seed=0):
    return torch.linalg.qr(torch.randn(m, rank, generator=torch.Generator().manual_seed(seed))).Q.contiguous()


@pytest.mark.parametrize(("projection", "per_element"), [("bf16", 2), ("int8", 1 + 5 / 256), ("int4", 0.5 + 5 / 256)])
def test_bytes(projection, per_element):
    kept = Basis(basis(512, 128), projection)
    assert sum(tensor.nbytes for tensor in kept.tensors.values()) == 512 * 128 * per_element
    assert {"bf16": {"P"}}.get(projection, {"P_codes", "P_scales", "P_zeros"}) == set(kept.tensors)


@pytest.mark.parametrize("shape", [(512, 128), (40, 7), (3, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_groups_are_of_the_flattened_basis_and_elements_move_by_half_a_step(bits, shape):
    P = basis(*shape)
    found = Basis(P, f"int{bits}").read()
    assert found.shape == P.shape
    assert found.dtype == torch.float32
    for group, back in zip(P.flatten().split(256), found.flatten().split(256), strict=True):
        step = (group.max().clamp(min=0) - group.min().clamp(max=0)) / (2**bits - 1)
        assert (group - back).abs().max() <= step / 2 * (1 + 1e-5)


def test_fp32_is_kept_as_it_is_and_written_over():
    kept, other = Basis(basis(6, 2), "fp32"), basis(6, 2, seed=1)
    kept.write(other)
    assert torch.equal(kept.read(), other)
    assert kept.read() is kept.tensors["P"]


def shape_of(name):
    return {"rank": min(PRESETS[name].Config().rank, 4), "update_proj_gap": 3, "weights": "fp32_master"}


@pytest.mark.parametrize("projection", FEW_BITS)
@pytest.mark.parametrize("name", sorted(KEEPS_ONE - EXACT))
def test_every_preset_that_keeps_a_basis_trains_with_it(name, projection):
    """The bases of both are found from the same gradients, and updates are alike to the precision of the basis."""
    start, grads = gradients((48, 32), 1, seed=1)[0], gradients((48, 32), 7)
    exact, found = (
        drive(PRESETS[name].Config(**shape_of(name) | {"projection": kind}), start, grads)[-1]
        for kind in ("fp32", projection)
    )
    tolerance = {"bf16": 0.05, "int8": 0.05, "int4": 0.5}[projection]
    assert 0 < (found - exact).norm() < tolerance * (exact - start).norm()
    if projection == "int4":
        few, most = (
            remaining_error(
                PRESETS[name].Config(**shape_of(name) | {"projection": kind, "lr": 0.1, "update_proj_gap": 20})
            )
            for kind in ("int4", "fp32")
        )
        assert few < 1.1 * most + 1e-3 < 0.4


@pytest.mark.parametrize("name", PRESETS)
def test_the_rest_say_why_not(name):
    def config(projection, **more):
        return PRESETS[name].Config(**{"weights": "fp32_master", "projection": projection, "refresh": "fixed"} | more)

    if name not in KEEPS_ONE:
        for projection in FEW_BITS:
            with pytest.raises(UserError, match=rf'optimizer\.projection = "{projection}" has no effect .*"{name}"'):
                check_optimizer(config(projection))
        return
    check_optimizer(config("bf16"))
    for projection in ("int8", "int4"):
        if name in EXACT:
            with pytest.raises(UserError, match=rf'"{projection}" gives bases .* not quite orthonormal.*"{name}"'):
                check_optimizer(config(projection))
        else:
            with pytest.raises(UserError, match=r"optimizer\.rotate_moments needs"):
                check_optimizer(config(projection, rotate_moments=True))


def test_a_new_basis_is_what_the_codes_hold():
    """Projected gradients and rotations see the basis that the update will use."""
    config = PRESETS["galore_adamw"].Config(rank=4, update_proj_gap=1, refresh_stagger=False, projection="int4")
    optimizer = optimizer_of(config, nn.Parameter(torch.zeros(24, 16)))
    target = optimizer.targets[0]
    G = gradients((24, 16), 1)[0]
    target.weight.parameter.grad = G.clone()
    optimizer.step()
    state = target.state["exp_avg"] / 0.1
    torch.testing.assert_close(state, target.P.t() @ target.matrix.left_form(G), rtol=1e-5, atol=1e-5)
