import pytest
import torch

from kernels.scaled_update import limit_growth_, reference, scaled_update_

LR, DECAY = 0.02, 0.3
ROWS, COLS = 70, 600
BY = pytest.mark.parametrize("by", [(1, COLS), (ROWS, 1), (1, 1)], ids=["columns", "rows", "matrix"])


def matrices(by, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    W, G = torch.randn(ROWS, COLS, generator=random), torch.randn(ROWS, COLS + 3, generator=random)[:, :COLS]
    return W, G.to(dtype), torch.rand(by, generator=random) + 0.1


@BY
@pytest.mark.parametrize("decay_after", [False, True], ids=["decay before", "decay after"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_definition(dtype, decay_after, by, device):
    W, G, scaling = matrices(by, dtype)
    found = W.clone().to(device)
    scaled_update_(found, G.to(device), scaling.to(device), LR, DECAY, decay_after=decay_after)
    expected = reference.scaled_update(W.double(), G.double(), scaling.double(), LR, DECAY, decay_after)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-6, atol=1e-6)


@BY
@pytest.mark.parametrize("key", [None, 7, 2**32 - 1], ids=["nearest", "key 7", "largest key"])
def test_a_bf16_weight_is_rounded_like_the_definition(key, by, device):
    """To the bit, but where fp32 results differ by a rounding that the next bf16 place depends on."""
    W, G, scaling = matrices(by)
    found, expected = W.bfloat16().to(device), W.bfloat16()
    scaled_update_(found, G.to(device), scaling.to(device), LR, DECAY, key=key)
    new = reference.scaled_update(expected.float(), G, scaling, LR, DECAY, False)
    from kernels.rounding import round_to

    rounded = round_to(new, torch.bfloat16, key)
    assert (found.cpu() != rounded).float().mean() < 1e-3
    torch.testing.assert_close(found.cpu().float(), rounded.float(), rtol=2**-7, atol=1e-6)


@BY
@pytest.mark.parametrize("previous", [torch.inf, 1e6, 0.5, 0.0], ids=["first step", "within", "limited", "from zero"])
def test_the_limiter_equals_the_definition(previous, by, device):
    _, G, scaling = matrices(by)
    state = torch.tensor(previous, device=device)
    limited = limit_growth_(state, G.to(device), scaling.to(device))
    expected, new = reference.limit_growth(torch.tensor(previous).double(), G.double(), scaling.double())
    torch.testing.assert_close(limited.cpu().double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(state.cpu().double(), new, rtol=1e-6, atol=0)


def test_a_zero_gradient_leaves_the_limiter(device):
    _, G, scaling = matrices((1, COLS))
    for previous in (torch.inf, 2.0):
        state = torch.tensor(previous, device=device)
        limit_growth_(state, torch.zeros_like(G).to(device), scaling.to(device))
        assert state.item() == previous


def test_not_a_number_stays_one(device):
    _, G, scaling = matrices((1, COLS))
    G[3, 4] = torch.nan
    state = torch.tensor(1.0, device=device)
    assert limit_growth_(state, G.to(device), scaling.to(device)).isnan().all()


def test_the_version_counter_moves(device):
    W, G, scaling = (X.to(device) for X in matrices((1, COLS)))
    version = W._version
    scaled_update_(W, G, scaling, LR)
    assert W._version > version
