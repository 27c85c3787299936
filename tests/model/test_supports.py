"""What every support must do inside of its linear; the linear's general duties are in test_linears.py."""

import pytest
import torch

from kernels.support import TileSupport
from model.counts import count_parameters
from model.errors import UserError
from model.linear import SparseLowRank, build_linear
from model.linear.support import SUPPORTS
from model.linear.support.base import check_supports
from pretrain.config import load_config

IN, OUT = 96, 144
pytestmark = pytest.mark.parametrize("kind", list(SUPPORTS))


def make(kind, seed=0, name="layers.0.attention.q_proj", density=0.34):
    linear = build_linear(SparseLowRank.Config(rank=5, alpha=10.0, density=density, support=kind), IN, OUT, name)
    linear.reset_parameters(seed)
    with torch.no_grad():
        linear.B.normal_(generator=torch.Generator().manual_seed(0))
    return linear


def test_forward_and_gradients_are_those_of_dense_weight(kind):
    linear = make(kind).double()
    x = torch.randn(7, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grad_y = torch.randn(7, OUT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tensors = [x, linear.A, linear.B, linear.values]
    y = linear(x)
    found = torch.autograd.grad(y, tensors, grad_y)
    weight = linear.scale * (linear.B @ linear.A)
    sparse = linear.support.add_to(torch.zeros_like(weight), linear.values)
    torch.testing.assert_close(linear.dense_weight().double(), (weight + sparse).detach(), rtol=1e-5, atol=1e-6)
    expected_y = x @ (weight + sparse).T
    torch.testing.assert_close(y, expected_y, rtol=1e-10, atol=1e-10)
    expected = torch.autograd.grad(expected_y, tensors, grad_y)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_holds_the_density_and_counts_it(kind):
    linear = make(kind)
    ones = linear.support.add_to(torch.zeros(OUT, IN), torch.ones_like(linear.values))
    assert set(ones.unique().tolist()) == {0.0, 1.0}
    assert ones.mean().item() == pytest.approx(0.34, abs=0.01)
    assert ones.sum() == linear.values.numel() == SUPPORTS[kind].count(0.34, IN, OUT)
    counted = SparseLowRank.count_parameters(linear.config, IN, OUT)
    assert counted == sum(p.numel() for p in linear.parameters())


def test_is_drawn_from_seed_and_name(kind):
    first, again = make(kind), make(kind)
    for name, tensor in first.support.state_dict().items():
        assert torch.equal(tensor, again.support.state_dict()[name])
        assert not tensor.is_floating_point()
    others = [make(kind, seed=1), make(kind, name="layers.1.attention.q_proj")]
    for other in others:
        pairs = zip(first.support.buffers(), other.support.buffers(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)


def test_survives_casts_moves_and_new_contents(kind):
    linear = make(kind)
    x = torch.eye(IN)
    linear(x)
    linear.to(torch.bfloat16).float()
    other = make(kind, seed=1)
    linear.load_state_dict(other.state_dict())
    torch.testing.assert_close(linear(x), other(x))
    torch.testing.assert_close(linear.dense_weight(), other.dense_weight())


def test_a_damaged_support_is_found(kind):
    linear = make(kind)
    check_supports(linear)
    with torch.no_grad():
        for buffer in linear.support.buffers():
            buffer.copy_(buffer.long().flip(-1).to(buffer.dtype))
    with pytest.raises(UserError, match=r"q_proj\.support: .*damaged"):
        check_supports(linear)


@pytest.mark.parametrize("density", [1e-5, 1e-9])
def test_too_low_a_density_is_refused(kind, density):
    with pytest.raises(UserError, match=r"linear\.density.*q_proj"):
        make(kind, density=density)


@pytest.mark.parametrize("density", [0.0, 1.0, -0.1, float("nan"), float("inf")])
def test_a_density_that_is_none_is_refused(kind, density, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(f'[linear]\nname = "sparse_low_rank"\nsupport = "{kind}"\ndensity = {density}\n')
    with pytest.raises(UserError, match=r"linear\.density"):
        load_config(file)


@pytest.mark.parametrize(("rank", "message"), [(0, r"linear\.rank"), (97, r"linear\.rank 97 exceeds")])
def test_a_rank_that_does_not_fit_is_refused(kind, rank, message, tmp_path):
    file = tmp_path / "config.toml"
    shape = "[model]\ndim = 96\nn_heads = 4\nffn_dim = 144\n"
    file.write_text(f'{shape}[linear]\nname = "sparse_low_rank"\nsupport = "{kind}"\ndensity = 0.4\nrank = {rank}\n')
    with pytest.raises(UserError, match=message):
        load_config(file)


def test_the_size_of_a_model_follows_from_its_configuration(kind):
    config = load_config("configs/llama_350m_sltrain.toml", [f"--linear.support={kind}"])
    counted = count_parameters(config.model, config.linear)["trainable"]
    assert counted == pytest.approx(194.29e6, rel=0.01)


def test_tile_order_is_no_matter_of_the_matrix(kind):
    """Exports are flat: the dense weight of the same entries given in any order."""
    if kind == "block":
        pytest.skip("blocks are stored row by row")
    linear = make(kind)
    flat = linear.support.flat().long()
    order = torch.argsort(flat)
    again = TileSupport.from_flat(flat[order], (OUT, IN))
    dense = torch.zeros(OUT * IN).index_add(0, again.flat(), linear.values.detach()).view(OUT, IN)
    sparse = linear.support.add_to(torch.zeros(OUT, IN), linear.values.detach())
    assert torch.equal(dense, sparse)
