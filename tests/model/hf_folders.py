"""Models and tokenizers that the tests of Hugging Face folders share."""

import io
from pathlib import Path

import sentencepiece
import torch

from model.build import build_model
from model.config import ModelConfig
from model.hf import export_folder
from model.hf.merged import merged_weights
from model.linear import Dense, SparseLowRank

BASE = {"dim": 32, "n_layers": 2, "n_heads": 4, "ffn_dim": 53, "vocab_size": 384, "max_seq_len": 64}
CASES = {
    "dense": (BASE, Dense.Config()),
    "grouped": ({**BASE, "n_kv_heads": 2, "head_dim": 12, "rope_theta": 500.0, "norm_eps": 1e-5}, Dense.Config()),
    "llama3": (
        {**BASE, "rope_theta": 5e3, "rope_scaling": "llama3", "rope_factor": 3.0, "rope_original_len": 60},
        Dense.Config(),
    ),
    "tied": ({**BASE, "tie_embeddings": True}, Dense.Config()),
    "sltrain": (BASE, SparseLowRank.Config(rank=6, alpha=12.0, density=0.1)),
}
HARD_STRINGS = [
    "", " ", "  two", " leading", "trailing ", "a", "The quick brown fox", "tab\tand\nnewline\r\n", "\n\n\n",
    "        x = 1", "café naïve", "日本語のテキスト", "emoji 👩\u200d🚀🙂", "1234567890 3.14", "\u00a0nbsp\u200b",
    "▁", "ﬁ", "def f(x):\n    return x ** 2  # square\n",
]  # fmt: skip


def build(case: str):
    shape, linear = CASES[case]
    config = ModelConfig(**shape, init_std=0.2)
    fp32 = torch.float32
    model = build_model(config, linear, seed=0, device="cpu", param_dtype=fp32, compute_dtype=fp32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    return model.eval()


def export_model(model, tokenizer: Path, out: Path, dtype: torch.dtype, **options) -> None:
    """Write a model that is in memory as a Hugging Face folder."""
    export_folder(model.config, merged_weights(model), tokenizer, out, dtype, **options)


def train_tokenizer(path: Path, **changes) -> Path:
    """A small SentencePiece model with the settings of `sparlow prepare`, or others."""
    settings = {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "add_dummy_prefix": False, "split_digits": True,
        "allow_whitespace_only_pieces": True, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "minloglevel": 2,
        **changes,
    }  # fmt: skip
    text = Path(io.__file__).read_text(encoding="utf-8").splitlines() * 3
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=writer, vocab_size=BASE["vocab_size"], **settings
    )
    path.write_bytes(writer.getvalue())
    return path
