"""Run in a process of its own: `make ROOT` writes random models with transformers, `read ROOT` reads those below ROOT.

Both leave the logits of ROOT/tokens.safetensors, in fp32, as logits.answer in each folder.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

BASE = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 150, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 8, "max_position_embeddings": 128, "initializer_range": 0.05,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
SHAPES = {
    "gqa": {"num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    "tied": {"tie_word_embeddings": True},
    "llama3": {"rope_parameters": LLAMA3, "num_key_value_heads": 4},
    "bf16": {"num_key_value_heads": 4},
    "head_width": {"head_dim": 12, "num_key_value_heads": 4},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2},
}
OTHERS = {"mistral": MistralConfig, "qwen2": Qwen2Config}


def answer(folder: Path, tokens: torch.Tensor) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        save_file({"logits": model(tokens).logits.contiguous()}, folder / "logits.answer")


def main(what: str, root: Path) -> None:
    tokens = load_file(root / "tokens.safetensors")["tokens"]
    for name, changes in SHAPES.items():
        if what == "make":
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(OTHERS.get(name, LlamaConfig)(**{**BASE, **changes}))
            for norm in (module for module in model.modules() if type(module).__name__.endswith("RMSNorm")):
                torch.nn.init.normal_(norm.weight, 1.0, 0.2)
            model = model.to(torch.bfloat16) if name == "bf16" else model
            model.save_pretrained(root / name, max_shard_size="100kB")
        answer(root / name, tokens)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
