from collections import Counter

import pytest
import torch
from linears import small_config
from torch import Tensor

from model.build import build_model, initialise, support_checksum
from model.config import ModelConfig
from model.linear import LINEARS, Dense, SparseLowRank
from model.seeding import generator

CONFIG = ModelConfig(dim=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=37, vocab_size=50)
EVEN = CONFIG.model_copy(update={"ffn_dim": 40})
SPARSE = SparseLowRank.Config(rank=4, density=0.1)


def build(linear=SPARSE, config=CONFIG, seed=0, param_dtype=torch.float32):
    return build_model(config, linear, seed=seed, device="cpu", param_dtype=param_dtype, compute_dtype=torch.float32)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", list(LINEARS))
def test_every_parameter_and_buffer_is_initialised_exactly_once(kind, tied, monkeypatch):
    model = build(small_config(kind), EVEN.model_copy(update={"tie_embeddings": tied}))
    names = {tensor.data_ptr(): name for name, tensor in model.state_dict().items()}
    assert len(names) == len(model.state_dict())
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    visits = Counter()
    for method in ("copy_", "fill_", "zero_"):
        original = getattr(Tensor, method)

        def record(self, *args, original=original, **kwargs):
            if self.data_ptr() in names:
                visits[names[self.data_ptr()]] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, method, record)
    initialise(model, 0)
    monkeypatch.undo()
    assert visits == Counter(dict.fromkeys(model.state_dict(), 1))
    for name, tensor in model.state_dict().items():
        assert not tensor.isnan().any(), name
        assert not (tensor == -1).all(), name


def test_the_same_seed_gives_the_same_model_whatever_came_before():
    torch.manual_seed(1)
    one = build()
    torch.rand(100)
    two, other = build(), build(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.tok_embeddings.weight, other.tok_embeddings.weight)
    assert not torch.equal(one.layers[0].attention.q_proj.A, one.layers[1].attention.q_proj.A)


@pytest.mark.parametrize("name", ["tok_embeddings.weight", "lm_head.weight", "layers.1.attention.v_proj.weight"])
def test_a_value_is_drawn_from_the_full_name_of_its_parameter(name):
    parameter = build(Dense.Config(), seed=3).get_parameter(name)
    drawn = torch.empty(parameter.shape).normal_(0, CONFIG.init_std, generator=generator(3, "init", name))
    assert torch.equal(parameter, drawn)


def test_bf16_parameters_are_the_rounded_fp32_ones():
    full, half = build().state_dict(), build(param_dtype=torch.bfloat16).state_dict()
    for name, tensor in half.items():
        kept = {"loc": torch.uint16, "tile_ptr": torch.int32}
        assert tensor.dtype == kept.get(name.rpartition(".")[2], torch.bfloat16)
        assert torch.equal(tensor, full[name].to(tensor.dtype))


def test_dense_matrices_start_normal_and_norms_at_one():
    model = build(Dense.Config(), CONFIG.model_copy(update={"dim": 64, "vocab_size": 500, "init_std": 0.05}))
    for tensor in (model.tok_embeddings.weight, model.lm_head.weight, model.layers[1].feed_forward.up_proj.weight):
        assert tensor.std().item() == pytest.approx(0.05, rel=0.05)
        assert abs(tensor.mean().item()) < 0.005
    assert (model.norm.weight == 1).all()
    assert not torch.equal(model.tok_embeddings.weight, model.lm_head.weight)


def test_support_checksum_tells_models_apart():
    model, other = build(), build(seed=1)
    assert support_checksum(model) == support_checksum(build())
    assert support_checksum(model) != support_checksum(other)
    model.layers[1].feed_forward.down_proj.support.tile_ptr[-1] -= 1
    assert support_checksum(model) != support_checksum(build())
    assert support_checksum(build(Dense.Config())) == 0


def test_modules_have_the_names_that_seed_them():
    for name, module in build().named_modules():
        assert getattr(module, "name", name) == name


def test_a_module_that_cannot_initialise_its_own_tensors_is_noticed():
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.empty(2))
    with pytest.raises(AssertionError, match="has tensors and no reset_parameters"):
        initialise(torch.nn.Sequential(module), 0)


@pytest.mark.parametrize("kind", list(LINEARS))
def test_every_parameter_of_a_fresh_model_moves_within_three_steps(kind):
    """Where too many factors start at zero, none ever receives a gradient."""
    model = build(small_config(kind), EVEN)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
