import pytest
import torch

from kernels.low_rank_update import kernel, low_rank_update_
from kernels.low_rank_update.reference import low_rank_update as reference
from kernels.quant import dequantize, quantize
from kernels.quant import reference as quant
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
    monkeypatch.setattr(kernel, "MANY_TILES", 10**9 if request.param == "small" else 0)
    monkeypatch.setattr(kernel, "BOUND_BY_MEMORY", 0 if request.param == "large" else 256)


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


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("which", ["P", "N"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_quantised_factor(which, bits, dtype, tiles, device):
    W, P, N = matrices(80, 144, 71, dtype)
    factors = {"P": P.to(device), "N": N.to(device)}
    q = factors[which] = quantize(factors[which], bits, 64)
    exact = {"P": P, "N": N} | {which: dequantize(q, dtype).cpu()}
    found = W.clone().to(device)
    low_rank_update_(found, **step(**factors))
    expected = reference(W.double(), exact["P"].double(), exact["N"].double(), LR, SCALE, DECAY)
    assert (found.cpu() - expected).norm() <= 1e-6 * expected.norm()


@DECAY_ORDERS
@pytest.mark.parametrize("key", [None, 3], ids=str)
@pytest.mark.parametrize("group", [64, 256])
def test_weight_in_8_bits(group, key, decay_after, device):
    W, P, N = matrices(70, 200, 48)
    P, N = (16 * P).round() / 16, (8 * N).round() / 8  # sums that are exact in any order
    q = quantize(W.to(device), 8, group)
    old = dequantize(q, torch.float32).cpu()
    low_rank_update_(q, P.to(device), N.to(device), 0.5, 0.25, 0.5, key=key, decay_after=decay_after)
    expected = quant.quantize(reference(old, P, N, 0.5, 0.25, 0.5, decay_after), 8, group, key)
    # Near a tie, the last bit of an fp32 weight decides the code.
    difference = (q.codes.cpu().int() - expected.codes.int()).abs()
    assert difference.max() <= 1
    assert difference.sum() <= 3
    torch.testing.assert_close(q.scales.cpu(), expected.scales, rtol=1e-6, atol=0)
    assert torch.equal(q.zeros.cpu(), expected.zeros)


def test_weight_in_8_bits_and_projector_in_4(device):
    W, P, N = matrices(70, 135, 40, torch.bfloat16)
    q, P4 = quantize(W.to(device), 8, 64), quantize(P.to(device), 4, 64)
    old, projector = dequantize(q, torch.float32).cpu(), dequantize(P4, torch.bfloat16).cpu()
    low_rank_update_(q, **step(P4, N.to(device)))
    exact = reference(old.double(), projector.double(), N.double(), LR, SCALE, DECAY)
    scales = q.scales.cpu().repeat_interleave(64, 1)[:, :135]
    assert ((dequantize(q, torch.float32).cpu() - exact).abs() <= 0.5001 * scales).all()


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
