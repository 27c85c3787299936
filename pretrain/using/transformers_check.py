"""Run by `sparlow export` in a process of its own: what transformers makes of an exported folder.

Arguments: the folder, and a scratch folder with tokens.safetensors and texts.json. Imports nothing of Sparlow.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

folder, scratch = sys.argv[1], Path(sys.argv[2])
model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
).eval()
with torch.no_grad():
    logits = model(load_file(scratch / "tokens.safetensors")["tokens"]).logits
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
save_file({"logits": logits.contiguous()}, scratch / "logits.safetensors")
texts = json.loads((scratch / "texts.json").read_text())
ids = []
if texts:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
(scratch / "answer.json").write_text(json.dumps({"ids": ids, "version": transformers.__version__}))
