import pytest
import torch

from kernels.fira_update import fira_update_
from kernels.fira_update.reference import fira_update as reference
from kernels.low_rank_update import in_triton

LR, DECAY = 0.02, 0.3
SIDES = pytest.mark.parametrize("side", ["left", "right"])


def matrices(side, rows=96, cols=200, rank=24, captured=0.0, dtype=torch.float32):
    """W, G, P, R, N in `dtype`; `captured`: how much larger the part of G that the projection sees is."""
    random = torch.Generator().manual_seed(0)
    if side == "right":
        rows, cols = cols, rows
    W, G = torch.randn(rows, cols, generator=random), torch.randn(rows, cols + 3, generator=random)[:, :cols]
    low = min(rows, cols)
    P = torch.linalg.qr(torch.randn(low, rank, generator=random))[0].contiguous()
    P = P if side == "left" else P.t().contiguous()
    G += captured * (P @ (P.t() @ G) if side == "left" else (G @ P.t()) @ P)
    G, P = G.to(dtype), P.to(dtype)
    R = (P.float().t() @ G.float() if side == "left" else G.float() @ P.float().t()).to(dtype)
    return W, G, P, R, (R.float().sign() * R.float().abs().sqrt()).to(dtype)


def both(W, G, P, R, N, previous, scale, side, device, **options):
    """(W, state) of the kernel and of the definition in fp64."""
    found = W.clone().to(device)
    before = None if previous is None else torch.tensor(previous, device=device)
    state = fira_update_(found, *(X.to(device) for X in (G, P, R, N)), before, LR, scale, DECAY, side=side, **options)
    assert state.shape == ()
    assert state.dtype == torch.float32
    exact = (X.double() for X in (W, G, P, R, N))
    before = torch.tensor(float("inf") if previous is None else previous)
    options.pop("key", None)
    return (found.cpu(), state.cpu()), reference(*exact, before, LR, scale, DECAY, side, **options)


@SIDES
@pytest.mark.parametrize("decay_after", [False, True], ids=["decay before", "decay after"])
@pytest.mark.parametrize("captured", [0.0, 60.0], ids=["norms suffice", "residual formed"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("previous", [None, 1000.0, 0.5], ids=["first step", "within the limit", "limited"])
def test_equals_the_published_two_products(previous, scale, captured, decay_after, side, device):
    tensors = matrices(side, captured=captured)
    (W, state), (expected, limited) = both(*tensors, previous, scale, side, device, decay_after=decay_after)
    assert (W - expected).norm() <= 1e-5 * (expected - tensors[0]).norm()
    torch.testing.assert_close(state, limited, rtol=1e-5, atol=0)
    if previous == 0.5:
        assert abs(state - 0.505) < 1e-5  # the limiter bit


@SIDES
def test_norms_alone_would_fail_where_the_residual_is_formed(side, device, monkeypatch):
    """At 1e-8 of the energy the difference of two energies holds no digit: the exact path is what makes it right."""
    tensors = matrices(side, captured=3e3)
    (_, state), (_, expected) = both(*tensors, None, 1.0, side, device)
    torch.testing.assert_close(state, expected, rtol=1e-3, atol=0)
    G, P = tensors[1].float(), tensors[2].float()
    back = P @ (P.t() @ G) if side == "left" else (G @ P.t()) @ P
    assert (G - back).norm() ** 2 < 1e-4 * G.norm() ** 2


@SIDES
@pytest.mark.parametrize("shape", [(33, 70, 1), (64, 65, 40), (144, 192, 7)], ids=str)
@pytest.mark.parametrize("large", [False, True], ids=["small tiles", "large tiles"])
def test_bf16(shape, large, side, device, monkeypatch):
    monkeypatch.setattr(in_triton, "MANY_TILES", 0 if large else 10**9)
    monkeypatch.setattr(in_triton, "BOUND_BY_MEMORY", 0)
    W, *others = matrices(side, *shape, dtype=torch.bfloat16)
    (found, state), (expected, limited) = both(W.bfloat16(), *others, 3.0, 0.5, side, device)
    step = (expected - W.bfloat16().double()).abs().max()  # N' is rounded to bf16, then W
    assert ((found.double() - expected).abs() <= 2**-8 * (expected.abs() + step)).all()
    torch.testing.assert_close(state, limited, rtol=1e-3, atol=0)


@SIDES
def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average(side, device):
    W, *others = matrices(side, 40, 90, 8)
    W = W.bfloat16()
    draws = []
    for key in range(24):
        (found, _), (expected, _) = both(W, *others, 3.0, 0.5, side, device, key=key)
        draws.append(found.double())
    ulp = 2.0 ** (expected.abs().log2().floor() - 7)
    errors = (torch.stack(draws) - expected) / ulp
    assert errors.abs().max() < 1.001
    assert errors.abs().mean() > 0.1
    assert errors.mean().abs() < 4 * 0.5 / errors.numel() ** 0.5


@SIDES
def test_three_steps_carry_the_state(side, device):
    W, G, P, R, N = matrices(side, 40, 90, 8)
    found, expected = W.clone().to(device), W.double()
    state, wanted = None, torch.tensor(float("inf"))
    for factor in (1.0, 5.0, 0.1):
        gradient, low = factor * G, factor * R
        tensors = [X.to(device) for X in (gradient.contiguous(), P, low, N * factor)]
        state = fira_update_(found, *tensors, state, LR, 1.0, side=side)
        exact = (X.double() for X in (gradient, P, low, N * factor))
        expected, wanted = reference(expected, *exact, wanted, LR, 1.0, 0.0, side)
    torch.testing.assert_close(state.cpu(), wanted, rtol=1e-5, atol=0)
    assert (found.cpu() - expected).norm() <= 1e-5 * (expected - W).norm()


def test_autograd_learns_of_the_change(device):
    W, *others = (matrix.to(device) for matrix in matrices("left"))
    before = W._version
    fira_update_(W, *others, None, LR, 0.25)
    assert W._version > before
