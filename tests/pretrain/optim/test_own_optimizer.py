"""AdamW as Sparlow's own optimizers take it: what it computes, keeps and refuses, and inside of the backward pass."""

import pytest
import torch
from support import check_optimizer
from torch import nn

from model.errors import UserError
from pretrain.optim.adamw import AdamW8bit
from pretrain.optim.matrix import Matrix
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.own_optimizer import OwnOptimizer
from pretrain.optim.rules.fira import Fira
from pretrain.optim.rules.galore import GaLore, GaLore8bit

SIZE = 80
"""Of a matrix: 6,400 elements, above what keeps fp32 moments under 8 bits."""


def chain(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    layers = [part for _ in range(4) for part in (nn.Linear(SIZE, SIZE, bias=False), nn.LayerNorm(SIZE, bias=False))]
    return nn.Sequential(*layers).to(dtype)


def backward(model, seed):
    x = torch.randn(8, SIZE, generator=torch.Generator().manual_seed(seed)).to(model[0].weight.dtype)
    (model(x) - x.roll(1, 1)).float().square().mean().backward()


def train(model, optimizer, steps=6, micro_steps=1):
    for step in range(steps):
        for micro_step in range(micro_steps):
            backward(model, 10 * step + micro_step)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def sharded(model, config, **options):
    return OwnOptimizer(list(model.named_parameters()), config, seed=0, **options)


def test_with_fp32_moments_it_is_adamw():
    model, peer = chain(), chain()
    optimizer = sharded(model, AdamW8bit.Config(moments="fp32"), grad_clip=0.5)
    mine = train(model, optimizer)
    adamw = torch.optim.AdamW(peer.parameters(), lr=3e-3, eps=1e-8, weight_decay=0.0)
    for step in range(6):
        backward(peer, 10 * step)
        norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), 0.5)
        adamw.step()
        adamw.zero_grad()
    assert optimizer.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    for ours, theirs in zip(mine, peer.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_codes_follow_fp32_moments():
    wide, codes = (
        train(m, sharded(m, AdamW8bit.Config(moments=kind))) for m, kind in ((chain(), "fp32"), (chain(), "8bit"))
    )
    start = [p.detach() for p in chain().parameters()]
    for a, b, s in zip(wide, codes, start, strict=True):
        assert (a - b).norm() < 0.1 * (a - s).norm()
    assert not torch.equal(wide[0], codes[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("moments", ["fp32", "8bit"])
def test_updates_inside_of_the_backward_pass_equal_those_after_it(moments, dtype):
    weights = "bf16_stochastic" if dtype == torch.bfloat16 else "fp32_master"
    after, inside = chain(dtype=dtype), chain(dtype=dtype)
    config = AdamW8bit.Config(moments=moments, weights=weights)
    expected = train(after, sharded(after, config))
    optimizer = sharded(inside, config.model_copy(update={"update": "per_layer"}))
    alive = []
    for parameter in inside.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in inside.parameters()))
        )
    assert all(map(torch.equal, expected, train(inside, optimizer)))
    assert len(alive) == 6 * len(expected)
    assert max(alive) == 0  # counted after the optimizer's own hook


@pytest.mark.fault("F19")
def test_a_gradient_that_is_not_finite_changes_nothing():
    model = chain()
    optimizer = sharded(model, AdamW8bit.Config())
    before = train(model, optimizer, steps=2)
    state = {name: tensor.clone() for name, _, tensor, _ in optimizer.tensors()}
    backward(model, 0)
    model[2].weight.grad[0, 0] = float("inf")
    optimizer.step()
    assert not optimizer.applied
    assert optimizer.updates == 2
    assert all(map(torch.equal, before, model.parameters()))
    assert all(torch.equal(state[name], tensor) for name, _, tensor, _ in optimizer.tensors())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("moments", ["fp32", "8bit"])
@pytest.mark.fault("F38")
def test_inside_of_the_backward_pass_it_moves_nothing_of_its_own(moments):
    model = chain()
    optimizer = sharded(model, AdamW8bit.Config(update="per_layer", moments=moments))
    before = model[2].weight.detach().clone()
    model[2].weight.register_hook(lambda gradient: gradient * float("nan"))
    backward(model, 0)
    optimizer.step()
    assert not optimizer.applied
    assert torch.equal(before, model[2].weight)
    assert optimizer.updates == 1


def test_moments_of_the_embedding_and_the_head_can_be_wide():
    named = [(name, nn.Parameter(torch.zeros(64, 80))) for name in ("tok_embeddings.weight", "x.A", "lm_head.weight")]
    for choice, expected in (("same", torch.uint8), ("fp32", torch.float32)):
        optimizer = OwnOptimizer(named, AdamW8bit.Config(embedding_moments=choice), seed=0)
        kinds = {name: tensor.dtype for name, _, tensor, _ in optimizer.tensors() if name.endswith("exp_avg")}
        assert kinds["x.A.exp_avg"] == torch.uint8
        assert {kinds["tok_embeddings.weight.exp_avg"], kinds["lm_head.weight.exp_avg"]} == {expected}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Fira.Config(accumulators="host"), r'accumulators = "host" has no effect.*set "device"'),
        (GaLore.Config(accumulators="host", update="per_layer"), r"accumulators.*per_layer.*sums nothing"),
        (GaLore.Config(embedding_moments="fp32"), r'embedding_moments = "fp32" has no effect.*moments = "fp32"'),
    ],
)
def test_what_has_no_effect_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        check_optimizer(config)


@pytest.mark.parametrize("preset", [GaLore.Config, GaLore8bit.Config])
def test_sums_in_host_memory_change_nothing(preset):
    results = []
    for place in ("device", "host"):
        model = chain()
        config = preset(rank=8, lr=0.01, update_proj_gap=4, accumulators=place)
        targets = {n: Matrix(n, (SIZE, SIZE), "right", 8) for n, p in model.named_parameters() if p.dim() == 2}
        optimizer = MatrixOptimizer(list(model.named_parameters()), targets, config, seed=0, grad_clip=0.05)
        results.append((train(model, optimizer, micro_steps=3), optimizer.grad_norm))
        assert optimizer.grad_norm > 0.05  # it clips
    assert results[0][1] == results[1][1]
    assert all(map(torch.equal, results[0][0], results[1][0]))
