import math
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from linears import small_config
from torch.utils._python_dispatch import TorchDispatchMode

from model.build import build_model
from model.config import ModelConfig
from model.linear import LINEARS, Dense, SparseLowRank
from model.rope import apply_rope, rotary_tables

CONFIG = ModelConfig(dim=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=37, vocab_size=50, max_seq_len=16)
SPARSE = SparseLowRank.Config(rank=4, density=0.1)


def build(linear=SPARSE, compute_dtype=torch.float32, checkpoint_every=0, **changes):
    model = build_model(
        CONFIG.model_copy(update=changes),
        linear,
        seed=0,
        device="cpu",
        param_dtype=torch.float32,
        compute_dtype=compute_dtype,
        checkpoint_every=checkpoint_every,
    )
    with torch.no_grad():  # B starts at zero; a trained model's does not
        for name, p in model.named_parameters():
            if not p.any():
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def batch(batch_size=2, seq_len=11):
    tokens = torch.randint(50, (batch_size, seq_len + 1), generator=torch.Generator().manual_seed(0))
    targets = tokens[:, 1:].clone()
    targets[0, :3] = -100
    return tokens[:, :-1], targets


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_the_summed_cross_entropy_of_the_logits(dtype, tied):
    model, (tokens, targets) = build(compute_dtype=dtype, tie_embeddings=tied), batch()
    logits = model(tokens)
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 11, 50)
    loss = model(tokens, targets)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", list(LINEARS))
def test_every_parameter_receives_gradient(kind):
    model, (tokens, targets) = build(small_config(kind), ffn_dim=40), batch()
    model(tokens, targets).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_tied_embedding_is_one_parameter_with_both_gradients():
    model, (tokens, targets) = build(tie_embeddings=True), batch()
    assert "lm_head.weight" not in model.state_dict()
    model(tokens, targets).backward()
    tied = model.tok_embeddings.weight.grad
    untied = build()
    untied.load_state_dict({**model.state_dict(), "lm_head.weight": model.tok_embeddings.weight.detach()})
    untied(tokens, targets).backward()
    torch.testing.assert_close(tied, untied.tok_embeddings.weight.grad + untied.lm_head.weight.grad)


def test_no_token_sees_a_later_one():
    model, (tokens, _) = build(), batch()
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-6)
    assert (before[:, 6:] - after[:, 6:]).abs().amax(-1).min() > 1e-3


def test_a_shorter_sequence_gives_the_same_logits():
    model, (tokens, _) = build(), batch()
    torch.testing.assert_close(model(tokens)[:, :4], model(tokens[:, :4]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_changes_memory_and_no_number(every, monkeypatch):
    plain, recomputed, (tokens, targets) = build(), build(checkpoint_every=every), batch()
    calls = []
    for layer in recomputed.layers:
        layer.register_forward_pre_hook(lambda module, args: calls.append(module))
    losses = [model(tokens, targets) for model in (plain, recomputed)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    assert len(calls) == 3 + len(range(0, 3, every))
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_bf16_activations_stay_close_to_fp32():
    (tokens, targets) = batch()
    exact, rounded = build(Dense.Config(), init_std=0.2), build(Dense.Config(), torch.bfloat16, init_std=0.2)
    seen = []
    rounded.layers[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    a, b = exact(tokens, targets), rounded(tokens, targets)
    assert seen == [torch.bfloat16]
    assert abs(a.item() - b.item()) < 0.02 * a.item()
    a.backward(), b.backward()
    for p, q in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert q.grad.dtype == torch.float32
        assert (p.grad - q.grad).norm() < 0.05 * p.grad.norm()


def tables_of(seq_len, head_width, theta, dtype):
    config = ModelConfig(dim=head_width, n_heads=1, rope_theta=theta)
    return rotary_tables(config, seq_len, torch.device("cpu"), dtype)


def test_rope_turns_pairs_by_the_angle_of_their_position():
    tables = tables_of(7, 8, 100.0, torch.float32)
    x = torch.randn(2, 7, 3, 8, generator=torch.Generator().manual_seed(0))
    turned = apply_rope(x, tables)
    for t in range(7):
        for i in range(4):
            z = torch.complex(x[:, t, :, i], x[:, t, :, i + 4])
            z = z * torch.polar(torch.tensor(1.0), torch.tensor(t * 100.0 ** (-2 * i / 8)))
            torch.testing.assert_close(turned[:, t, :, i], z.real, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(turned[:, t, :, i + 4], z.imag, rtol=1e-5, atol=1e-5)


def test_rope_gradient():
    tables = tables_of(5, 6, 100.0, torch.float64)
    x = torch.randn(1, 5, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, tables), x)


def test_rope_turns_every_head_alike_whatever_its_memory_looks_like():
    tables = tables_of(5, 6, 100.0, torch.float32)
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0)).transpose(1, 2)  # [B, T, H, E]
    heads = [apply_rope(head, tables) for head in x.contiguous().split(1, dim=2)]
    assert torch.equal(apply_rope(x, tables), torch.cat(heads, dim=2))


def test_all_layers_share_rotary_tables_spread_over_the_heads():
    class Repeats(TorchDispatchMode):
        made: ClassVar[list[tuple[int, ...]]] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.repeat.default:
                self.made.append(tuple(out.shape))
            return out

    with Repeats() as repeats:
        build()(*batch())
    assert sorted(repeats.made) == [(11, 2, 8)] * 2 + [(11, 4, 8)] * 2  # cos and sin, of keys and of queries


def test_rope_tables_made_in_inference_mode_serve_training_later():
    model, (tokens, targets) = build(), batch()
    with torch.inference_mode():
        model(tokens)
    model(tokens, targets).backward()


def test_rotary_tables_of_a_wider_type_are_computed_in_it():
    found = tables_of(2000, 8, 10_000.0, torch.float64)
    angles = [[p * 10_000.0 ** (-2 * i / 8) for i in range(4)] for p in range(2000)]
    expected = torch.tensor(
        [[[f(a) for a in row] for row in angles] for f in (math.cos, math.sin)], dtype=torch.float64
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [8192, 100])
def test_llama3_scaling_keeps_fast_frequencies_divides_slow_ones_and_mixes_between(length):
    """The rule as Llama 3.1 states it, by wavelengths, computed in fp64 without torch."""
    config = ModelConfig(
        dim=64, n_heads=1, rope_theta=5e5, rope_scaling="llama3", rope_factor=16.0, rope_original_len=length
    )
    found = rotary_tables(config, 3, torch.device("cpu"), torch.float64)
    kinds = set()
    for i in range(32):
        frequency = 5e5 ** (-2 * i / 64)
        wavelength = 2 * math.pi / frequency
        if wavelength < length / 4:
            kinds.add("kept")
        elif wavelength > length:
            kinds.add("divided")
            frequency /= 16
        else:
            kinds.add("mixed")
            smooth = (length / wavelength - 1) / (4 - 1)
            frequency = (1 - smooth) * frequency / 16 + smooth * frequency
        expected = [[math.cos(p * frequency), math.sin(p * frequency)] for p in range(3)]
        torch.testing.assert_close(found[:, :, i].t(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert kinds == {"kept", "divided", "mixed"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_factor": 2.0}, 'model.rope_factor has no effect with model.rope_scaling = "none"'),
        (
            {"rope_scaling": "llama3", "rope_low_freq_factor": 4.0},
            "rope_low_freq_factor 4 is not below model.rope_high_freq_factor 4",
        ),
    ],
)
def test_a_rope_scaling_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)
