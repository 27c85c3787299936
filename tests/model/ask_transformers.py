"""Run in a process of its own: logits and token ids of every Hugging Face folder below argv[1], from transformers."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

root = Path(sys.argv[1])
tokens = load_file(root / "tokens.safetensors")["tokens"]
strings = json.loads((root / "strings.json").read_text())
for folder in sorted(path.parent for path in root.glob("*/config.json")):
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        save_file({"logits": model(tokens).logits.contiguous()}, folder / "logits.answer")
    answer = {
        "ids": [tokenizer.encode(s, add_special_tokens=False) for s in strings],
        "texts": [tokenizer.decode(tokenizer.encode(s, add_special_tokens=False)) for s in strings],
        "with_special": tokenizer.encode("x"),
        "size": len(tokenizer),
    }
    (folder / "tokenizer.answer").write_text(json.dumps(answer))
    model.save_pretrained(root / "saved" / folder.name, max_shard_size="40kB")
