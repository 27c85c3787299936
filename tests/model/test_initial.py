"""Initial values by `linear.init`: laws, moments, and that every model can train from them."""

from math import gamma

import pytest
import torch
from growing import never_moved, shape
from pydantic import ValidationError

from model.build import build_model
from model.linear import LINEARS, Dense, Lora, LoraFA, LowRank, ReLora, Sparse, SparseLowRank, build_linear
from model.linear.initial import fill_generalised
from model.linear.int8 import Int8Linear
from model.seeding import generator

NAME, STD = "layers.0.attention.q_proj", 0.03
INITS = {
    Dense: ["normal", "ggd:0.8"],
    LowRank: ["kaiming", "spectral", "ggd:0.8"],
    SparseLowRank: ["kaiming", "spectral", "orthogonal", "ggd:0.8"],
    Sparse: ["uniform", "ggd:0.8"],
    Lora: ["kaiming", "spectral", "orthogonal", "ggd:0.8"],
    LoraFA: ["kaiming", "spectral", "orthogonal", "ggd:0.8"],
    ReLora: ["kaiming", "spectral", "orthogonal", "ggd:0.8"],
}
SETTINGS = {"rank": 12, "alpha": 6.0, "density": 0.1}
every = pytest.mark.parametrize(
    ("kind", "init"),
    [(kind, init) for kind, inits in INITS.items() for init in inits],
    ids=lambda one: one if isinstance(one, str) else one.__name__,
)


def config_of(kind, init=None, **changes):
    settings = {key: value for key, value in {**SETTINGS, **changes}.items() if key in kind.Config.model_fields}
    return kind.Config(**settings, **({"init": init} if init else {}))


def fresh(kind, init=None, seed=0, name=NAME, n_in=200, n_out=300, **changes):
    linear = build_linear(config_of(kind, init, **changes), n_in, n_out, name, STD)
    for tensor in linear.state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    linear.reset_parameters(seed)
    return linear


def test_every_linear_with_the_key_is_here():
    assert set(INITS) == {kind for kind in LINEARS.values() if "init" in kind.Config.model_fields}


@every
def test_depends_on_seed_and_name_alone(kind, init):
    first, again = fresh(kind, init).state_dict(), fresh(kind, init).state_dict()
    others = fresh(kind, init, seed=1).state_dict(), fresh(kind, init, name="q").state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert not tensor.is_floating_point() or tensor.isfinite().all()
        assert not tensor.any() or not any(torch.equal(tensor, other[name]) for other in others)


@every
def test_every_parameter_of_a_model_moves_within_two_steps(kind, init):
    model = build_model(
        shape(2), config_of(kind, init), seed=0, device="cpu", param_dtype=torch.float32, compute_dtype=torch.float32
    )
    still = never_moved(model.train())
    still.pop("tok_embeddings.weight", None)
    assert all(part < 0.02 for part in still.values()), still  # a row of a sparse matrix may be empty


def drawn(size, name, law, *numbers):
    return getattr(torch.empty(size), law)(*numbers, generator=generator(0, "init", f"{NAME}.{name}"))


def test_without_the_key_nothing_has_changed():
    """Bit for bit what was drawn before there was one."""
    bound = 200**-0.5
    low_rank, sparse, lora = fresh(LowRank), fresh(SparseLowRank), fresh(Lora)
    for linear in (low_rank, sparse, lora):
        assert torch.equal(linear.A, drawn((12, 200), "A", "uniform_", -bound, bound))
    std = STD / (0.5 * bound * (12 / 3) ** 0.5)
    assert torch.equal(low_rank.B, drawn((300, 12), "B", "normal_", 0.0, std))
    assert not sparse.B.any()
    assert torch.equal(sparse.values, drawn((6000,), "values", "uniform_", -bound, bound))
    assert torch.equal(fresh(Dense).weight, drawn((300, 200), "weight", "normal_", 0.0, STD))
    assert torch.equal(lora.weight, fresh(Dense).weight)
    assert not lora.B.any()


def test_spectral_factors_are_the_truncated_svd_of_the_dense_linear_of_that_name():
    """scale B A = U_r s_r V_r^T in float64, shared evenly; of full rank it is the dense linear itself."""
    dense = fresh(Dense).dense_weight().double()
    U, s, Vh = torch.linalg.svd(dense, full_matrices=False)
    for kind in (LowRank, Lora, SparseLowRank):
        linear = fresh(kind, "spectral")
        A, B = linear.A.detach().double(), linear.B.detach().double()
        torch.testing.assert_close(0.5 * B @ A, (U[:, :12] * s[:12]) @ Vh[:12], rtol=0, atol=1e-6)
        for factor in (A, B):
            torch.testing.assert_close(torch.linalg.svdvals(factor), (s[:12] / 0.5).sqrt(), rtol=1e-5, atol=0)
    assert torch.equal(linear.values, fresh(SparseLowRank).values)
    lora = fresh(Lora, "spectral")
    torch.testing.assert_close(lora.dense_weight().double(), dense, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.linalg.svdvals(lora.weight.double())[:188], s[12:], rtol=1e-4, atol=1e-6)
    whole = fresh(LowRank, "spectral", rank=200).dense_weight()
    torch.testing.assert_close(whole.double(), dense, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [12, 13, 64])
@pytest.mark.parametrize("kind", [SparseLowRank, Lora])
def test_orthogonal_factors_are_not_zero_and_their_product_is(kind, rank):
    linear = fresh(kind, "orthogonal", rank=rank, n_in=500, n_out=700)
    A, B = linear.A.detach().double(), linear.B.detach().double()
    scale, std_of_A = 6.0 / rank, (3 * 500) ** -0.5
    assert A.square().mean().sqrt().item() == pytest.approx(std_of_A, rel=0.05)
    assert B.square().mean().sqrt().item() == pytest.approx(STD / (scale * std_of_A * rank**0.5), rel=0.05)
    independent = B.norm() * A.norm() / rank**0.5
    assert (B @ A).norm() < 1e-6 * independent
    assert sum(int(torch.linalg.matrix_rank(factor, rtol=1e-5)) for factor in (A, B)) == rank
    linear(torch.randn(64, 500, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert all(parameter.grad.any() for parameter in linear.parameters())
    for rest in {"values", "weight"} & linear.state_dict().keys():
        usual = fresh(kind, n_in=500, n_out=700).state_dict()[rest]
        torch.testing.assert_close(linear.state_dict()[rest], usual, rtol=0, atol=1e-7)


def test_orthogonal_of_rank_one_is_kaiming():
    linear = fresh(SparseLowRank, "orthogonal", rank=1)
    assert linear.A.all()
    assert not linear.B.any()


def moments(tensor):
    """Standard deviation and kurtosis."""
    x = tensor.detach().double().flatten()
    return x.std().item(), (x.pow(4).mean() / x.square().mean().square()).item()


@pytest.mark.parametrize(("nu", "kurtosis"), [(0.5, 25.2), (1.0, 6.0), (1.5, 3.762), (2.0, 3.0), (8.0, 1.922)])
def test_generalised_gaussian_has_its_moments_and_its_distribution(nu, kurtosis):
    """P(|x| <= t) is the regularised incomplete gamma function P(1/nu, (t / a)^nu), at every decile."""
    x, std = torch.empty(1_000_000), 0.7
    fill_generalised(x, std, nu, 0, "x")
    found = moments(x)
    assert found[0] == pytest.approx(std, rel=0.01)
    assert found[1] == pytest.approx(kurtosis, rel=0.06 if nu < 1 else 0.02)
    a = std * (gamma(1 / nu) / gamma(3 / nu)) ** 0.5
    below = torch.special.gammainc(torch.tensor(1 / nu).double(), (x.double().abs() / a) ** nu)
    deciles = torch.quantile(below[:500_000], torch.arange(1, 10, dtype=torch.float64) / 10)
    torch.testing.assert_close(deciles, torch.arange(1, 10, dtype=torch.float64) / 10, rtol=0, atol=3e-3)
    assert (x > 0).float().mean().item() == pytest.approx(0.5, abs=2e-3)


def test_generalised_gaussian_does_not_depend_on_threads():
    one, two = torch.empty(100_000), torch.empty(100_000)
    threads = torch.get_num_threads()
    try:
        for count, tensor in ((1, one), (2, two)):
            torch.set_num_threads(count)
            fill_generalised(tensor, 1.0, 0.8, 0, "x")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


def test_generalised_gaussians_have_the_standard_deviations_of_the_default():
    size = {"n_in": 400, "n_out": 600, "rank": 100}
    for kind in INITS:
        usual, found = fresh(kind, **size), fresh(kind, "ggd:1", **size)
        for name, parameter in found.named_parameters():
            if name == "B" and kind is not LowRank:
                assert not parameter.any()
                continue
            std, kurtosis = moments(parameter)
            assert std == pytest.approx(moments(usual.get_parameter(name))[0], rel=0.05), (kind, name)
            assert kurtosis == pytest.approx(6, rel=0.25), (kind, name)
    assert fresh(LowRank, "ggd:1", **size).dense_weight().std().item() == pytest.approx(STD, rel=0.05)
    rows = torch.empty(100, 400)
    LowRank.draw_rows(config_of(LowRank, "ggd:1"), rows, 600, 0, "rows")
    assert moments(rows) == (pytest.approx((3 * 400) ** -0.5, rel=0.05), pytest.approx(6, rel=0.25))


def test_eight_bit_weights_start_alike():
    config = config_of(Dense, "ggd:1")
    linear = Int8Linear(config, 200, 300, NAME, STD)
    linear.reset_parameters(0)
    assert (linear.dense_weight() - fresh(Dense, "ggd:1").weight).abs().max() < 0.01


@pytest.mark.parametrize(
    ("kind", "init"),
    [
        (LowRank, "orthogonal"),  # all projections zero: no gradient anywhere
        (Dense, "spectral"),
        (Dense, "kaiming"),
        (Sparse, "kaiming"),
        (SparseLowRank, "normal"),
        *((SparseLowRank, init) for init in ("ggd", "ggd:", "ggd:0", "ggd:0.2", "ggd:10.5", "ggd:-1", "ggd:nan")),
    ],
)
def test_what_a_linear_cannot_start_as_is_refused(kind, init):
    with pytest.raises(ValidationError, match=r"expected '.*'ggd:NU' with NU from 0\.25 to 10, got"):
        config_of(kind, init)
