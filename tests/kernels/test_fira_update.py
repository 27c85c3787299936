import pytest
import torch

from kernels.fira_update import fira_update_

LR, SCALE, DECAY = 0.1, 0.25, 0.5


def matrices(side="left", rank=6):
    random = torch.Generator().manual_seed(0)
    rows, cols = (20, 50) if side == "left" else (50, 20)
    W, G = (torch.randn(rows, cols, generator=random) for _ in range(2))
    P = torch.linalg.qr(torch.randn(20, rank, generator=random))[0].contiguous()
    P = P if side == "left" else P.t().contiguous()
    R = P.t() @ G if side == "left" else G @ P.t()
    return W, G, P, R, R.sign() * R.abs().sqrt()


def published(W, G, P, R, N, state, side):
    """The lines of the released optimizer, for one parameter."""
    sub = SCALE * (P @ R if side == "left" else R @ P)
    dim = 0 if N.shape[0] < N.shape[1] else 1
    factor = torch.norm(N, dim=dim) / (torch.norm(R, dim=dim) + 1e-8)
    if dim == 1:
        factor = factor.unsqueeze(1)
    residual = (G - sub) * factor
    if "scaling_grad" in state:
        norm = torch.norm(residual)
        limiter = max(norm / (state["scaling_grad"] + 1e-8), 1.01) / 1.01
        residual = residual / limiter
        state["scaling_grad"] = norm / limiter
    else:
        state["scaling_grad"] = torch.norm(residual)
    W.add_(SCALE * (P @ N if side == "left" else N @ P) + residual, alpha=-LR)
    W.add_(W, alpha=-LR * DECAY)


@pytest.mark.parametrize("side", ["left", "right"])
def test_three_steps_of_the_released_optimizer(side):
    W, G, P, R, N = matrices(side)
    expected, state, limiter = W.clone(), {}, None
    for growth in (1.0, 5.0, 0.1):  # free, limited, shrinking
        published(expected, growth * G, P, growth * R, growth * N, state, side)
        limiter = fira_update_(
            W, growth * G, P, growth * R, growth * N, limiter, LR, SCALE, DECAY, side=side, decay_after=True
        )
        torch.testing.assert_close(limiter, state["scaling_grad"], rtol=1e-6, atol=0)
        torch.testing.assert_close(W, expected, rtol=1e-5, atol=1e-6)


def test_a_full_projector_at_scale_one_leaves_no_residual():
    W, G, P, R, N = matrices(rank=20)
    old = W.clone()
    fira_update_(W, G, P, R, N, None, LR, 1.0)
    torch.testing.assert_close(W, old - LR * (P @ N), rtol=1e-5, atol=1e-5)


def test_bf16_weight_by_key():
    W, *others = matrices()
    draws = [W.bfloat16() for _ in range(3)]
    for draw, key in zip(draws, (1, 1, 2), strict=True):
        fira_update_(draw, *others, None, LR, SCALE, key=key)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": "right"}, r"P has shape \(20, 6\); it must be \(20, 50\)"),
        ({"side": "top"}, "side is 'top'"),
        ({"G": torch.zeros(20, 49)}, "G has shape"),
        ({"R": torch.zeros(6, 50).bfloat16()}, "P, R, N must have one dtype"),
        ({"N": torch.zeros(50, 6).t()}, "N's rows must be contiguous"),
        ({"W": torch.zeros(20, 50).half()}, "W is torch.float16"),
        ({"key": 1}, "W is fp32"),
        ({"previous": torch.zeros(()).double()}, "0-d fp32 tensor"),
        ({"previous": torch.zeros(1)}, "0-d fp32 tensor"),
    ],
)
def test_refuses(change, message):
    arguments = dict(zip("WGPRN", matrices(), strict=True)) | {"previous": None, "lr": LR, "scale": SCALE}
    with pytest.raises(ValueError, match=message):
        fira_update_(**(arguments | change))


def test_changes_a_parameter_without_a_graph():
    W, *others = matrices()
    parameter = torch.nn.Parameter(W.clone())
    fira_update_(W, *others, None, LR, SCALE)
    fira_update_(parameter, *others, None, LR, SCALE)
    assert torch.equal(parameter, W)
    assert parameter.is_leaf
