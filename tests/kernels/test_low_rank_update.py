import pytest
import torch

from kernels.low_rank_update import low_rank_update_


def matrices(dtype=torch.float32, rows=24, cols=70, rank=6):
    random = torch.Generator().manual_seed(0)
    W, P, N = (torch.randn(*size, generator=random) for size in ((rows, cols), (rows, rank), (rank, cols)))
    return W, P.to(dtype), N.to(dtype)


def test_is_galores_published_step_with_the_decay_after():
    W, P, N = matrices()
    expected = W.clone()
    expected.add_(0.25 * (P @ N), alpha=-0.1)
    expected.add_(expected, alpha=-0.1 * 0.5)
    low_rank_update_(W, P, N, 0.1, 0.25, 0.5, decay_after=True)
    torch.testing.assert_close(W, expected, rtol=1e-6, atol=1e-6)


def test_decay_multiplies_the_old_weight_alone():
    W, P, N = matrices()
    expected = 0.95 * W - 0.1 * 0.25 * (P @ N)
    low_rank_update_(W, P, N, torch.tensor(0.1), torch.tensor(0.25), torch.tensor(0.5))
    torch.testing.assert_close(W, expected, rtol=1e-6, atol=1e-6)


def test_stochastic_bf16_is_right_on_average_and_takes_a_neighbour():
    W, P, N = matrices(rows=40)
    old = W.bfloat16()
    exact = old.double() - 1e-3 * (P.double() @ N.double())
    draws = []
    for key in range(100):
        W = old.clone()
        low_rank_update_(W, P, N, 1e-3, 1.0, key=key)
        draws.append(W.double())
    ulp = 2.0 ** (exact.abs().log2().floor() - 7)
    errors = (torch.stack(draws) - exact) / ulp
    assert errors.abs().max() < 1.0001
    assert errors.abs().mean() > 0.1  # nearest would be biased for good
    assert errors.mean().abs() < 4 * 0.5 / errors.numel() ** 0.5
    assert errors.mean(0).abs().max() < 4.5 * 0.5 / 100**0.5


def test_bf16_to_nearest_rounds_once():
    W, P, N = matrices(torch.bfloat16)
    W = W.bfloat16()
    expected = (0.95 * W.float() - 0.025 * (P.float() @ N.float())).bfloat16()
    low_rank_update_(W, P, N, 0.1, 0.25, 0.5)
    torch.testing.assert_close(W, expected, rtol=2**-8, atol=0)


def test_nothing_to_do_for_an_empty_matrix():
    low_rank_update_(torch.empty(0, 5), torch.empty(0, 3), torch.empty(3, 5), 0.1, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda W, P, N: (W, P[:-1], N), r"P has shape \(23, 6\); it must be \(24, 6\)"),
        (lambda W, P, N: (W, P, N[:, :-1]), r"N has shape \(6, 69\)"),
        (lambda W, P, N: (W.half(), P, N), "W is torch.float16"),
        (lambda W, P, N: (W, P.bfloat16(), N), "P, N must have one dtype"),
        (lambda W, P, N: (W, P.t().contiguous().t(), N), "P's rows must be contiguous"),
        (lambda W, P, N: (W[0], P, N), "must be matrices"),
        (lambda W, P, N: (W, P.to("meta"), N), "must have one device"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        low_rank_update_(*change(*matrices()), 0.1, 1.0)


@pytest.mark.parametrize(("key", "message"), [(1, "W is fp32"), (-1, "key is -1")])
def test_refuses_a_key(key, message):
    with pytest.raises(ValueError, match=message):
        low_rank_update_(*matrices(), 0.1, 1.0, key=key)


def test_changes_a_parameter_without_a_graph():
    W, P, N = matrices()
    parameter = torch.nn.Parameter(W.clone())
    low_rank_update_(W, P, N, 0.1, 0.25)
    low_rank_update_(parameter, P, N, 0.1, 0.25)
    assert torch.equal(parameter, W)
    assert parameter.is_leaf
