import pytest
import torch

from kernels.low_rank_update import in_triton, low_rank_update_
from kernels.low_rank_update.reference import low_rank_update as reference
from kernels.rounding import round_to

LR, SCALE, DECAY = 0.02, 0.25, 0.3
DECAY_ORDERS = pytest.mark.parametrize("decay_after", [False, True], ids=["decay before", "decay after"])


def matrices(rows, cols, rank, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    W = torch.randn(rows, cols + 5, generator=random)[:, :cols]  # a row stride beyond the width
    P = torch.linalg.qr(torch.randn(rows, rank, generator=random))[0].contiguous()
    return W, P.to(dtype), torch.randn(rank, cols, generator=random).to(dtype)


def step(P, N, decay_after=False):
    return {"P": P, "N": N, "lr": LR, "scale": SCALE, "weight_decay": DECAY, "decay_after": decay_after}


@pytest.fixture(params=["small", "tall", "large"])
def tiles(request, monkeypatch):
    monkeypatch.setattr(in_triton, "MANY_TILES", 10**9 if request.param == "small" else 0)
    monkeypatch.setattr(in_triton, "BOUND_BY_MEMORY", 0 if request.param == "large" else 256)


@DECAY_ORDERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(64, 64, 16), (144, 208, 48), (97, 65, 1), (33, 171, 30)], ids=str)
def test_fp32_weight(shape, dtype, decay_after, device):
    W, P, N = matrices(*shape, dtype)
    expected = reference(W.double(), P.double(), N.double(), LR, SCALE, DECAY, decay_after)
    wide = torch.full((W.shape[0], W.shape[1] + 5), 7.0, device=device)
    found = wide[:, : W.shape[1]]
    found.copy_(W)
    low_rank_update_(found, **step(P.to(device), N.to(device), decay_after))
    assert (found.cpu() - expected).norm() <= 1e-6 * expected.norm()
    assert (wide[:, W.shape[1] :] == 7).all()


def test_bf16_weight_to_nearest(tiles, device):
    W, P, N = matrices(144, 208, 48, torch.bfloat16)
    found = W.bfloat16().to(device)
    exact = reference(W.bfloat16().double(), P.double(), N.double(), LR, SCALE, DECAY)
    low_rank_update_(found, **step(P.to(device), N.to(device)))
    assert ((found.cpu().double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()  # rounded once


def test_bf16_weight_stochastically_by_the_definitions_bits(tiles, device):
    W, P, N = matrices(144, 208, 48)
    P, N = (16 * P).round() / 16, (8 * N).round() / 8  # sums that are exact in any order
    found = W.bfloat16().to(device)
    low_rank_update_(found, P.to(device), N.to(device), 0.5, 0.25, 0.5, key=2**32 - 9)
    expected = reference(W.bfloat16().float(), P, N, 0.5, 0.25, 0.5)
    assert torch.equal(found.cpu(), round_to(expected, torch.bfloat16, 2**32 - 9))
    assert not torch.equal(found.cpu(), expected.bfloat16())


def test_hyper_parameters_as_tensors(device):
    W, P, N = matrices(40, 40, 8)
    floats, tensors = W.clone().to(device), W.clone().to(device)
    low_rank_update_(floats, P.to(device), N.to(device), LR, SCALE, DECAY)
    lr, scale, decay = (torch.tensor(value, device=device) for value in (LR, SCALE, DECAY))
    low_rank_update_(tensors, P.to(device), N.to(device), lr, scale, decay)
    assert torch.equal(floats, tensors)


def test_autograd_learns_of_the_change(device):
    W, P, N = (matrix.to(device) for matrix in matrices(40, 40, 8))
    before = W._version
    low_rank_update_(W, P, N, LR, SCALE)
    assert W._version > before
