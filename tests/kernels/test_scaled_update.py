import pytest
import torch

from kernels.scaled_update import limit_growth_, scaled_update_

LR, DECAY = 0.1, 0.5
SHAPES = {"columns": (1, 50), "rows": (20, 1), "matrix": (1, 1)}


def matrices(by="columns"):
    random = torch.Generator().manual_seed(0)
    W, G = (torch.randn(20, 50, generator=random) for _ in range(2))
    return W, G, torch.rand(SHAPES[by], generator=random) + 0.1


@pytest.mark.parametrize("decay_after", [False, True], ids=["decay before", "decay after"])
@pytest.mark.parametrize("by", SHAPES)
def test_scaled_update(by, decay_after):
    W, G, scaling = matrices(by)
    update, kept = LR * scaling.double() * G.double(), 1 - LR * DECAY
    expected = kept * (W.double() - update) if decay_after else kept * W.double() - update
    scaled_update_(W, G, scaling, LR, DECAY, decay_after=decay_after)
    torch.testing.assert_close(W.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("by", SHAPES)
def test_the_limiter_over_four_calls(by):
    """Free, within 1 %, limited, zero: the last changes nothing."""
    _, G, scaling = matrices(by)
    norm, state = (G * scaling).norm(), torch.tensor(torch.inf)
    torch.testing.assert_close(limit_growth_(state, G, scaling), scaling)
    torch.testing.assert_close(limit_growth_(state, 1.005 * G, scaling), scaling)
    torch.testing.assert_close(limit_growth_(state, 5 * G, scaling), scaling * 1.01 * 1.005 / 5)
    torch.testing.assert_close(state, 1.01 * 1.005 * norm)
    limit_growth_(state, torch.zeros_like(G), scaling)
    torch.testing.assert_close(state, 1.01 * 1.005 * norm)


def test_bf16_weight_by_key():
    W, G, scaling = matrices()
    draws = [W.bfloat16() for _ in range(3)]
    for draw, key in zip(draws, (1, 1, 2), strict=True):
        scaled_update_(draw, G, scaling, LR, key=key)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    nearest = W.bfloat16()
    scaled_update_(nearest, G, scaling, LR)
    assert torch.equal(nearest, (W.bfloat16().float() - LR * scaling * G).bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": torch.zeros(50, 20)}, "W has shape"),
        ({"W": torch.zeros(20, 50, dtype=torch.float64)}, "W is torch.float64"),
        ({"G": torch.zeros(50, 20).t()}, "G's rows must be contiguous"),
        ({"scaling": torch.ones(50)}, "scaling is"),
        ({"scaling": torch.ones(20, 50)}, "scaling is"),
        ({"scaling": torch.ones(1, 50, dtype=torch.bfloat16)}, "scaling is torch.bfloat16"),
        ({"key": 3}, "W is fp32"),
    ],
)
def test_bad_input(change, message):
    W, G, scaling = matrices()
    with pytest.raises(ValueError, match=message):
        scaled_update_(**({"W": W, "G": G, "scaling": scaling, "lr": LR} | change))


def test_the_limiters_state_is_one_number():
    _, G, scaling = matrices()
    with pytest.raises(ValueError, match="0-d fp32"):
        limit_growth_(torch.ones(1), G, scaling)


def test_a_leaf_is_updated_in_place():
    W, G, scaling = matrices()
    parameter = torch.nn.Parameter(W)
    version = parameter._version
    scaled_update_(parameter, G, scaling, LR)
    assert parameter._version > version
