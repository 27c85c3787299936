"""Run by `sparlow export` in a process of its own: what transformers makes of an exported folder.

Arguments: the folder, a scratch folder with tokens.safetensors and texts.json, and "whole", or "in parts" where the
model may not fit into memory: its modules then take their weights from the files as they are called, and give them
back. Imports nothing of Sparlow.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def whole(folder: str) -> torch.nn.Module:
    """The model as everybody loads it; it must be able to generate."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
    ).eval()
    with torch.no_grad():
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    return model


def in_parts(folder: str) -> torch.nn.Module:
    """The model of the folder's configuration, each of whose modules has its weights while it is called."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # its table is computed, not stored
    files: dict[str, Path] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    names = {parameter: name for name, parameter in model.named_parameters()}  # one for a tied head and its embedding
    if set(names.values()) != files.keys():
        raise ValueError(f"the files and the configuration differ in {sorted(set(names.values()) ^ files.keys())[:3]}")
    for module in model.modules():
        own = {key: (names[parameter], parameter) for key, parameter in module.named_parameters(recurse=False)}
        if not own:
            continue

        def fill(module, inputs, own=own):
            for key, (name, empty) in own.items():
                with safe_open(files[name], framework="pt") as file:
                    weight = file.get_tensor(name).float()
                if weight.shape != empty.shape:
                    raise ValueError(f"{name} is {tuple(weight.shape)} in place of {tuple(empty.shape)}")
                module._parameters[key] = torch.nn.Parameter(weight, requires_grad=False)

        def empty(module, inputs, output, own=own):
            module._parameters |= {key: parameter for key, (_, parameter) in own.items()}

        module.register_forward_pre_hook(fill)
        module.register_forward_hook(empty)
    return model


if __name__ == "__main__":
    folder, scratch, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    model = whole(folder) if how == "whole" else in_parts(folder)
    with torch.no_grad():
        logits = model(load_file(scratch / "tokens.safetensors")["tokens"], use_cache=False).logits
    save_file({"logits": logits.contiguous()}, scratch / "logits.safetensors")
    texts = json.loads((scratch / "texts.json").read_text())
    ids = []
    if texts:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    (scratch / "answer.json").write_text(json.dumps({"ids": ids, "version": transformers.__version__}))
