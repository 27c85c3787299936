"""Run in a process of its own: logits of tokens.safetensors and greedy ids after them, from the folder argv[1]."""

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

folder, dtype, scratch = sys.argv[1:]
tokens = load_file(f"{scratch}/tokens.safetensors")["tokens"]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
with torch.no_grad():
    logits = model(tokens).logits
    longer = model.generate(tokens[:1], max_new_tokens=24, do_sample=False, use_cache=True, eos_token_id=-1)
save_file({"logits": logits.float().contiguous(), "ids": longer[0]}, f"{scratch}/answer.safetensors")
