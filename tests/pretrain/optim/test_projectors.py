"""Bases: orthonormal whatever the gradient, and of the energy that the exact singular vectors capture."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_drive import optimizer_of
from torch import nn

from model.build import build_model
from model.config import ModelConfig
from model.linear.dense import Dense
from pretrain.engine.own import OwnEngine
from pretrain.optim.matrix import Matrix, projected_side
from pretrain.optim.projector import PROJECTORS, is_late
from pretrain.optim.projector.base import initial_basis
from pretrain.optim.rules import PRESETS
from pretrain.optim.rules.galore import GoLore

CPU = torch.device("cpu")
OF_THE_GRADIENT = [name for name, projector in PROJECTORS.items() if projector.needs_gradient]
ORTHONORMAL = [name for name in PROJECTORS if name != "gaussian"]
LEADING = ["subspace_iteration", "svd"]


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def left(m: int, n: int, rank: int) -> Matrix:
    return Matrix("w", (m, n), "left", rank)


def with_spectrum(m: int, n: int, spectrum: torch.Tensor, seed: int = 0) -> torch.Tensor:
    U, _, Vh = torch.linalg.svd(torch.randn(m, n, generator=random(seed), dtype=torch.float64), full_matrices=False)
    return ((U * spectrum) @ Vh).float()


def find(name: str, G: torch.Tensor, rank: int, old: torch.Tensor | None = None, seed: int = 1) -> torch.Tensor:
    P = PROJECTORS[name]().basis(left(*G.shape, rank), G, old, random(seed))
    assert P is not None
    return P


def start(G: torch.Tensor, rank: int) -> torch.Tensor:
    return initial_basis(left(*G.shape, rank), random(2), CPU)


def captured(P: torch.Tensor, G: torch.Tensor) -> float:
    """|P^T G|^2 over the most that a basis of so many columns can have."""
    G = G.double() / G.abs().max()
    best = torch.linalg.svdvals(G)[: P.shape[1]].square().sum()
    return float((P.double().t() @ G).square().sum() / best)


def assert_orthonormal(P: torch.Tensor, rank: int) -> None:
    assert P.shape[1] == rank
    assert P.dtype == torch.float32
    assert P.is_contiguous()
    torch.testing.assert_close(P.double().t() @ P.double(), torch.eye(rank).double(), rtol=0, atol=1e-5)


def spectra(k: int) -> dict[str, torch.Tensor]:
    i = torch.arange(1, k + 1, dtype=torch.float64)
    return {
        "equal": torch.ones(k),
        "slow": i**-0.25,
        "decaying": i**-1.0,
        "steep": 10 ** (-12 * (i - 1) / k),
        "of rank 1": (i == 1).double(),
        "of rank 7": (i <= 7).double(),
    }


@pytest.mark.parametrize("spectrum", spectra(1))
@pytest.mark.parametrize(("m", "n", "rank"), [(96, 96, 24), (96, 250, 24), (250, 96, 24), (128, 128, 4), (64, 170, 64)])
def test_captures_99_percent_from_a_random_basis_and_from_none(m, n, rank, spectrum):
    G = with_spectrum(m, n, spectra(min(m, n))[spectrum])
    for old in (start(G, rank), None):
        P = find("subspace_iteration", G, rank, old)
        assert_orthonormal(P, rank)
        assert captured(P, G) >= 0.99


@pytest.mark.parametrize(("m", "n", "rank"), [(256, 256, 64), (128, 344, 32), (344, 128, 32), (256, 256, 8)])
def test_captures_99_percent_of_pure_noise(m, n, rank):
    """The flattest gradient there is, each one with another basis."""
    P = start(torch.empty(m, n), rank)
    for seed in range(3):
        G = torch.randn(m, n, generator=random(seed))
        P = find("subspace_iteration", G, rank, P)
        assert captured(P, G) >= 0.99


def test_captures_99_percent_of_the_gradients_of_a_model():
    """From a random basis, and from the one of the step before."""
    torch.manual_seed(0)
    config = ModelConfig(dim=64, n_layers=2, n_heads=4, ffn_dim=172, vocab_size=320, max_seq_len=64)
    fp32 = torch.float32
    model = build_model(config, Dense.Config(), seed=0, device="cpu", param_dtype=fp32, compute_dtype=fp32)
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("layers")}
    assert len(weights) == 14
    bases: dict[str, torch.Tensor] = {}
    for step in range(3):
        tokens = torch.randint(320, (4, 65), generator=random(step))
        model.zero_grad()
        logits = model(tokens[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        for name, weight in weights.items():
            G = weight.grad if projected_side(tuple(weight.shape), "std", "right") == "left" else weight.grad.t()
            bases[name] = find("subspace_iteration", G, 16, bases.get(name, start(G, 16)))
            assert_orthonormal(bases[name], 16)
            assert captured(bases[name], G) >= 0.99, (name, step)


@pytest.mark.parametrize("name", LEADING)
@pytest.mark.parametrize(("m", "n"), [(40, 40), (40, 70), (70, 40)])
def test_columns_are_the_leading_singular_vectors_in_order(name, m, n):
    G = with_spectrum(m, n, 2.0 ** -torch.arange(40))
    P = find(name, G, 8, start(G, 8))
    U = torch.linalg.svd(G.double()).U[:, :8]
    torch.testing.assert_close((U * P).sum(0).abs(), torch.ones(8).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", OF_THE_GRADIENT)
def test_turns_no_column_against_the_old_basis(name):
    G = with_spectrum(24, 40, 2.0 ** -torch.arange(24))
    old = find(name, G, 6) * torch.tensor([1, -1, -1, 1, -1, 1])
    torch.testing.assert_close(find(name, G, 6, old), old, rtol=0, atol=1e-5)


@pytest.mark.fault("F25")
@pytest.mark.parametrize("name", OF_THE_GRADIENT)
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.fault("F25")
def test_keeps_the_old_basis_where_the_gradient_tells_nothing(name, value):
    G = torch.full((12, 20), 0.0)
    G[3, 4] = value
    projector = PROJECTORS[name]()
    assert projector.basis(left(12, 20, 4), G, start(G, 4), random()) is None


@pytest.mark.fault("F25")
@pytest.mark.parametrize("name", OF_THE_GRADIENT)
@pytest.mark.parametrize("factor", [1e-30, 1e-42, 1e30])
def test_size_of_the_gradient_does_not_matter(name, factor):
    G = with_spectrum(24, 40, 1.5 ** -torch.arange(24))
    P = find(name, G * factor, 6, start(G, 6))
    assert_orthonormal(P, 6)
    if factor > 1e-40:  # where denormal numbers keep its digits
        torch.testing.assert_close(P, find(name, G, 6, start(G, 6)), rtol=0, atol=1e-5)


@pytest.mark.fault("F25")
@pytest.mark.parametrize("name", OF_THE_GRADIENT)
@pytest.mark.parametrize("kept", [1, 3])
def test_completes_the_basis_of_a_gradient_of_lower_rank(name, kept):
    G = with_spectrum(30, 50, (torch.arange(30) < kept).double())
    G[8:] = 0  # exact zeros, of which rounding leaves nothing
    P = find(name, G, 10, start(G, 10))
    assert_orthonormal(P, 10)
    if name in LEADING:
        assert captured(P, G) > 1 - 1e-6


def test_completion_comes_from_the_old_basis():
    G = torch.zeros(30, 50)
    G[0, 0] = 1
    old = start(G, 10)
    P = find("subspace_iteration", G, 10, old)
    assert P[0, 0].abs() == pytest.approx(1, abs=1e-5)
    assert (old.t() @ P).norm() ** 2 > 7  # of 10 columns; unit vectors would have 3


@pytest.mark.parametrize("name", list(PROJECTORS))
@pytest.mark.parametrize(("m", "n", "rank"), [(1, 9, 1), (9, 1, 1), (1, 1, 1), (9, 9, 9), (9, 20, 9), (20, 9, 9)])
def test_shapes_at_the_edge(name, m, n, rank):
    G = torch.randn(m, n, generator=random())
    P = find(name, G, rank, start(G, rank))
    assert P.shape == (m, rank)
    if name in ORTHONORMAL:
        assert_orthonormal(P, rank)
    if name in LEADING:
        assert captured(P, G) > 1 - 1e-5


@pytest.mark.parametrize("name", list(PROJECTORS))
def test_depends_on_its_arguments_alone(name):
    G = torch.randn(40, 24, generator=random())
    old = start(G.t(), 6)
    assert torch.equal(find(name, G.t(), 6, old), find(name, G.clone().t(), 6, old.clone()))
    if name not in LEADING:
        assert not torch.equal(find(name, G.t(), 6, old), find(name, G.t(), 6, old, seed=5))


@pytest.mark.fault("F25")
def test_exact_svd_that_does_not_converge_is_replaced(monkeypatch):
    G = with_spectrum(24, 40, 1.5 ** -torch.arange(24))

    def fail(*_, **__):
        raise torch.linalg.LinAlgError

    monkeypatch.setattr(torch.linalg, "svd", fail)
    for name in ("svd", "sampled_svd"):
        assert torch.equal(find(name, G, 6), find("subspace_iteration", G, 6))


def test_gaussian_keeps_norms_on_average():
    x = torch.randn(50, generator=random())
    P = torch.stack([find("gaussian", torch.empty(50, 60), 8, seed=seed) for seed in range(2000)])
    ratio = (x @ P).square().sum(1) / x.square().sum()  # chi^2 of 8 degrees of freedom, over 8
    assert ratio.mean() == pytest.approx(1, abs=4 * math.sqrt(2 / 8 / 2000))
    assert ratio.var() == pytest.approx(2 / 8, rel=0.2)


def test_random_orthogonal_is_uniform():
    """So P has mean 0 and P P^T has mean rank / m, on and off the diagonal."""
    draws = torch.stack([find("random_orthogonal", torch.empty(6, 8), 2, seed=seed) for seed in range(4000)]).double()
    assert draws.mean(0).abs().max() < 4.5 * (6 * 4000) ** -0.5
    shadow = (draws @ draws.mT).mean(0)
    torch.testing.assert_close(shadow, torch.eye(6).double() * 2 / 6, rtol=0, atol=0.02)


def test_sampled_svd_draws_in_proportion_to_singular_values():
    spectrum = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.0])
    G = with_spectrum(5, 9, spectrum)
    U = torch.linalg.svd(G.double()).U
    drawn = torch.stack(
        [(U.t() @ find("sampled_svd", G, 1, seed=seed).double()).abs().argmax() for seed in range(2000)]
    )
    share = torch.bincount(drawn, minlength=5) / 2000
    torch.testing.assert_close(share, spectrum / 8, rtol=0, atol=4 * math.sqrt(0.25 / 2000))
    P = find("sampled_svd", G, 3).double()  # three different ones, largest first
    order = (U.t() @ P).abs().argmax(0).tolist()
    assert order == sorted(set(order))


def test_golore_turns_random_late_and_others_never():
    config = GoLore.Config()
    assert (config.lr, config.scale) == (1e-3, 1.0)
    for total, first in ((10, 8), (100, 80), (10_000, 8_000), (150_000, 120_000)):
        late = [is_late(config, step, total) for step in (0, first - 1, first, total - 1)]
        assert late == [False, False, True, True]
    assert not is_late(GoLore.Config(random_fraction=0.0), 99, 100)
    assert not is_late(PRESETS["sara"].Config(), 99, 100)
    weight = nn.Parameter(torch.zeros(24, 16))
    optimizer = optimizer_of(GoLore.Config(rank=1, update_proj_gap=1), weight)
    spike = torch.outer(torch.arange(1.0, 25), torch.ones(16))
    kept = []
    for step in range(3):
        optimizer.refresher.late = step > 0
        (weight * spike).sum().backward()
        optimizer.step()
        P = optimizer.targets[0].P
        kept.append(float((P.t() @ torch.ones(16, 1) / 4).square()))
    assert kept[0] > 0.99  # the gradient's own direction
    assert max(kept[1:]) < 0.9


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    part=st.floats(0, 1),
    decay=st.floats(0, 4),
    size=st.floats(-25, 25),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_rank_and_spectrum(m, n, part, decay, size, transposed, seed):
    k = min(m, n)
    rank = 1 + int(part * (k - 1))
    spectrum = 10**size * torch.arange(1, k + 1, dtype=torch.float64) ** -decay
    G = with_spectrum(n, m, spectrum, seed).t() if transposed else with_spectrum(m, n, spectrum, seed)
    for name in ORTHONORMAL:
        assert_orthonormal(find(name, G, rank, start(G, rank)), rank)
    assert captured(find("svd", G, rank), G) > 1 - 1e-5
    assert captured(find("subspace_iteration", G, rank, start(G, rank)), G) >= 0.99


@settings(deadline=None, derandomize=True, max_examples=40)
@given(m=st.integers(2, 40), n=st.integers(2, 40), part=st.floats(0, 1), seed=st.integers(0, 99))
def test_spans_what_the_exact_vectors_span_where_a_gap_says_what_that_is(m, n, part, seed):
    k = min(m, n)
    rank = 1 + int(part * (k - 1))
    spectrum = torch.where(torch.arange(k) < rank, 1.0, 1e-3) * (1 + torch.rand(k, generator=random(seed)))
    G = with_spectrum(m, n, spectrum, seed)
    P, exact = find("subspace_iteration", G, rank, start(G, rank)).double(), find("svd", G, rank).double()
    torch.testing.assert_close(P @ P.t(), exact @ exact.t(), rtol=0, atol=1e-4)


def test_the_engine_tells_golore_how_far_the_run_is():
    """By the run's steps, not the optimizer's, which begin anew where a growth resets it."""
    optimizer = optimizer_of(GoLore.Config(rank=1), nn.Parameter(torch.zeros(24, 16)))
    engine = object.__new__(OwnEngine)
    engine.optimizer, engine.total_steps = optimizer, 10
    late = []
    for step in range(10):
        engine.begin(1e-3, step)
        late.append(optimizer.refresher.late)
    assert late == [False] * 8 + [True] * 2
    assert optimizer.param_groups[0]["lr"] == 1e-3
