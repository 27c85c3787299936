"""Moments carried into a new basis, against the statistics they stand for (arXiv 2410.16103)."""

import pytest
import torch
from optim_drive import drive, gradients
from support import check_optimizer

from model.errors import UserError
from pretrain.optim.moments import direction, init_moments, load, rotate_moments
from pretrain.optim.rules.galore import GaLore

CPU, STEPS = torch.device("cpu"), 6


def bases(m, rank):
    return [torch.linalg.qr(G).Q.contiguous() for G in gradients((m, rank), 2, seed=3)]


def driven(moments):
    """A configuration, and the state of `STEPS` steps of 5 x 24."""
    config = GaLore.Config(rotate_moments=True, moments=moments, betas=(0.9, 0.99))
    state = init_moments(config, (5, 24), CPU)
    for t, R in enumerate(gradients((5, 24), STEPS), 1):
        direction(config, state, R, t, "w")
    return config, state


def rotated(M, V, C, betas=(0.9, 0.99), steps=STEPS):
    """LDAdam's rule, with bias correction as in its algorithm 1."""
    M, V, C = M.double(), V.double(), C.double()
    c1, c2 = (1 - beta**steps for beta in betas)
    return C @ M, c2 * ((C * C) @ (V / c2 - (M / c1) ** 2) + (C @ (M / c1)) ** 2).abs()


@pytest.mark.parametrize(("moments", "tolerance"), [("fp32", 1e-6), ("bf16", 2**-7), ("8bit", 0.05)])
def test_both_moments_follow_the_published_rule(moments, tolerance):
    config, state = driven(moments)
    old, new = bases(16, 5)
    expected = rotated(*(moment.clone() for moment in load(config, state)), new.t() @ old)
    rotate_moments(config, state, old, new, "w", STEPS + 1)
    for found, right in zip(load(config, state), expected, strict=True):
        assert (found - right).norm() <= tolerance * right.norm()


def test_a_permuted_basis_permutes_the_moments():
    config, state = driven("fp32")
    old, before = bases(16, 5)[0], {name: moment.clone() for name, moment in state.items()}
    order = torch.tensor([3, 0, 4, 1, 2])
    rotate_moments(config, state, old, old[:, order], "w", STEPS + 1)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(state[name], before[name][order], rtol=1e-5, atol=1e-6)


def test_adafactors_rows_turn():
    config, state = driven("adafactor")
    row, (old, new) = state["exp_avg_sq_row"].clone(), bases(16, 5)
    rotate_moments(config, state, old, new, "w", STEPS + 1)
    torch.testing.assert_close(state["exp_avg_sq_row"], (new.t() @ old) ** 2 @ row)


def test_before_the_first_step_there_is_nothing_to_rotate():
    config = GaLore.Config(rotate_moments=True)
    state = init_moments(config, (5, 24), CPU)
    rotate_moments(config, state, *bases(16, 5), "w", 1)
    assert not any(moment.any() for moment in state.values())


def test_refreshes_rotate_only_where_asked():
    start, grads = torch.zeros(16, 24), gradients((16, 24), 6)
    plain, turned = (
        drive(GaLore.Config(projector="svd", rank=4, update_proj_gap=3, rotate_moments=rotate), start, grads)
        for rotate in (False, True)
    )
    torch.testing.assert_close(plain[2], turned[2], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(plain[3], turned[3])


def test_a_basis_that_is_not_orthonormal_cannot_be_rotated_into():
    with pytest.raises(UserError, match="orthonormal"):
        check_optimizer(GaLore.Config(rotate_moments=True, projector="gaussian"))


def hundred_rotations(moments, name="w"):
    """exp_avg_sq (16, 64) after 100 steps in bases that turn a little at each."""
    config = GaLore.Config(rotate_moments=True, moments=moments)
    state, random = init_moments(config, (16, 64), CPU), torch.Generator().manual_seed(0)
    old = torch.linalg.qr(torch.randn(32, 16, generator=random)).Q
    for step in range(1, 101):
        new = torch.linalg.qr(old + 1e-3 * torch.randn(32, 16, generator=random)).Q
        new = new * (new * old).sum(0).sign()
        rotate_moments(config, state, old, new, name, step)
        direction(config, state, torch.randn(16, 64, generator=random), step, "w")
        old = new
    return load(config, state)[1].double()


def test_a_hundred_rotations_in_bf16_do_not_drift():
    exact = hundred_rotations("fp32")
    found = hundred_rotations("bf16")
    assert (found / exact - 1).square().mean().sqrt() < 0.02
    assert not torch.equal(found, hundred_rotations("bf16", "v"))
