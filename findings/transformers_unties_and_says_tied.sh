#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, safetensors 0.8.0.
# Expected: a LLaMA folder whose config.json says "tie_word_embeddings": true beside a file that has an lm_head.weight of its
#   own is either tied, as the configuration says, or loaded untied with a configuration that says so.
# Seen: the head of the file is used, as a warning says, and config.tie_word_embeddings of the loaded model stays true: whoever
#   reads the configuration and not the log (a planner, a converter) believes in one matrix where there are two.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 safetensors==0.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

shape = dict(vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False)).save_pretrained("model")
path = pathlib.Path("model/config.json")
path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
stored = load_file("model/model.safetensors")
model = AutoModelForCausalLM.from_pretrained("model")
head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
seen = {
    "one tensor": head.data_ptr() == embedding.data_ptr(),
    "head of the file": torch.equal(head, stored["lm_head.weight"]),
    "says tied": model.config.tie_word_embeddings,
}
print(seen)
expected = {"one tensor": False, "head of the file": True, "says tied": True}
sys.exit(0 if seen == expected else f"behaviour changed: {seen}")
PY
echo "seen as described"
