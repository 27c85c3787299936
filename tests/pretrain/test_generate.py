"""Sampling with kept keys and values writes the text that forward passes of the whole text write, for less."""

import pytest
import torch
from processes import train_world
from support import train_here

from kernels.sparse_low_rank_linear import Choice
from model.build import build_model
from model.config import ModelConfig
from model.linear import CoLA, Dense, LowRank, Sparse, SparseLowRank
from model.seeding import generator
from model.transformer import Transformer
from pretrain.bench.sample import continue_by_whole_texts
from pretrain.data.tokenizer import SentencePieceTokenizer
from pretrain.machine.distributed import World
from pretrain.using import decoding
from pretrain.using.generate import _draw, continue_ids, generate

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=320, max_seq_len=32)
SPARSE = SparseLowRank.Config(rank=4, density=0.1)


def build(linear=SPARSE, compute_dtype=torch.float32):
    precision = {"param_dtype": torch.float32, "compute_dtype": compute_dtype}
    model = build_model(SHAPE.model_copy(update={"init_std": 0.3}), linear, seed=0, device="cpu", **precision)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.any():
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


@torch.no_grad()
def written_by_whole_texts(model, tokenizer, prompt, tokens, temperature):
    """Text from a forward pass of the last max_seq_len tokens, no more, for every new one."""
    begin = [tokenizer.bos_id]
    ids, draws = begin + tokenizer.encode(prompt), generator(0, "generate", prompt)
    model.eval()
    for _ in range(tokens):
        logits = model(torch.tensor([ids[-SHAPE.max_seq_len :]]))[0, -1, : tokenizer.vocab_size]
        ids.append(_draw(logits, temperature, 50, draws))
        if ids[-1] == tokenizer.eos_id:
            ids.pop()
            break
    return tokenizer.decode(ids[len(begin) :])


LINEARS = {
    "dense": Dense.Config(),
    "low_rank": LowRank.Config(rank=4),
    "element": SPARSE,
    "block": SparseLowRank.Config(rank=4, density=0.5, support="block"),
    "sparse": Sparse.Config(density=0.3),
    "cola": CoLA.Config(rank=4),
}


@pytest.mark.parametrize("linear", LINEARS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("prompt", ["ab", "ab cd " * 20])
def test_the_text_is_that_of_whole_texts(corpus, linear, temperature, prompt):
    """Beyond max_seq_len too, where the model sees a window, and where it does from the beginning."""
    model, tokenizer = build(LINEARS[linear]), SentencePieceTokenizer(corpus / "tokenizer.model")
    expected = written_by_whole_texts(model, tokenizer, prompt, 60, temperature)
    assert len(tokenizer.encode(expected)) > SHAPE.max_seq_len
    found = generate(model, tokenizer, prompt, tokens=60, seed=0, world=ALONE, temperature=temperature)
    assert found == expected


def test_a_token_costs_a_pass_of_one_until_the_window_slides(monkeypatch):
    model, passes = build(), []
    forward = Transformer.forward

    def counted(self, tokens, *others):
        passes.append(tokens.shape[1])
        return forward(self, tokens, *others)

    monkeypatch.setattr(Transformer, "forward", counted)
    continue_ids(model, [1] * 5, 40, None, lambda logits: int(logits.argmax()), ALONE)
    assert passes == [5] + [1] * (32 - 5) + [32] * (40 - 28)


def test_csr_linears_build_their_weight_once_for_single_tokens(monkeypatch):
    model = build()
    for module in model.modules():
        if isinstance(module, SparseLowRank):
            module.support.choice = Choice(path="csr")
    seen = []
    forward = Transformer.forward

    def noted(self, *arguments):
        seen.append({m.support.choice for m in self.modules() if isinstance(m, SparseLowRank)})
        return forward(self, *arguments)

    monkeypatch.setattr(Transformer, "forward", noted)
    found = continue_ids(model, [1] * 5, 20, None, lambda logits: int(logits.argmax()), ALONE)
    assert seen == [{Choice(keep="step")}] * 20
    assert continue_by_whole_texts(model, [1] * 5, 20, CPU) == found
    assert seen[-1] == {Choice(path="csr")}


@pytest.mark.parametrize(("free", "casts"), [(10**9, True), (0, False)])
@pytest.mark.parametrize("linear", LINEARS)
def test_weights_are_cast_once_if_there_is_room(monkeypatch, linear, free, casts):
    """With the same numbers, bit for bit; the parameters are themselves again afterwards, and train."""
    model = build(LINEARS[linear], torch.bfloat16).eval()
    before, tokens = dict(model.named_parameters()), torch.arange(20).view(1, 20)
    for module in ("pretrain.using.decoding", "pretrain.engine.kernel_choices"):
        monkeypatch.setattr(f"{module}.free_bytes", lambda device: free)
    with torch.no_grad():
        expected = model(tokens)
        with decoding.decoding(model):
            found = [model(tokens) for _ in range(2)]
            assert model.lm_head.weight.dtype == (torch.bfloat16 if casts else torch.float32)
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    model(tokens, tokens).backward()
    assert all(parameter.grad is not None for parameter in before.values())


def test_weights_are_put_back_after_an_error():
    model = build(compute_dtype=torch.bfloat16)
    before = dict(model.named_parameters())

    def broken(logits):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        continue_ids(model, [1], 5, None, broken, ALONE)
    assert all(one is before[name] for name, one in model.named_parameters())
    assert model.training


@pytest.mark.slow
def test_ranks_that_share_weights_write_the_text_of_one(tiny, tmp_path, capsys):
    """At ZeRO-3, in a run that samples beyond max_seq_len."""
    options = ["--train.max_steps=2", "--eval.every=1", "--eval.prompts=['ab cd']", "--eval.sample_tokens=48"]
    train_here(tiny, *options, f"--run.dir={tmp_path}/one")
    one = capsys.readouterr().out
    two = train_world(2, tiny, [[*options, "--parallel.zero_stage=3", f"--run.dir={tmp_path}/two"]])
    texts = [[line for line in output.splitlines() if "  | " in line] for output in (one, two)]
    assert texts[0]
    assert texts[0] == texts[1]
