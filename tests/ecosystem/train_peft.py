"""Run in a process of its own: every way of PEFT to fine-tune the folder argv[1] on the texts in argv[2], briefly.

Prints a line of JSON per method: its losses, and how far the logits move when its adapter is merged.
"""

import json
import sys
from pathlib import Path

import peft
import torch
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, RandLoraConfig, VeraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, texts = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
STEPS = 12
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS = {
    "LoRA": LoraConfig(r=4, target_modules=ALL, task_type="CAUSAL_LM"),
    "PiSSA": LoraConfig(r=4, target_modules=ALL, init_lora_weights="pissa"),
    "OLoRA": LoraConfig(r=4, target_modules=ALL, init_lora_weights="olora"),
    "DoRA": LoraConfig(r=4, target_modules=ALL, use_dora=True),
    "AdaLoRA": AdaLoraConfig(init_r=6, target_r=3, tinit=2, tfinal=4, deltaT=2, total_step=STEPS, target_modules=ALL),
    "LoHa": LoHaConfig(r=4, target_modules=ALL),
    "VeRA": VeraConfig(r=16, target_modules=["q_proj", "o_proj"]),
    "LoRA-FA": LoraConfig(r=4, target_modules=ALL),
    "RandLoRA": RandLoraConfig(r=4, randlora_alpha=8, target_modules=["q_proj", "o_proj"]),
}
for name in ("Bone", "Miss"):  # the second succeeds the first
    if config := getattr(peft, f"{name}Config", None):
        METHODS[name] = config(r=4, target_modules=ALL)

tokenizer = AutoTokenizer.from_pretrained(folder)
tokens = torch.tensor([tokenizer(text)["input_ids"][:24] for text in texts])
for name, config in METHODS.items():
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)
    if name == "LoRA-FA":
        optimizer = create_lorafa_optimizer(model=model, r=4, lora_alpha=8, lr=1e-2)
    else:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(STEPS):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        if name == "AdaLoRA":
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        before = model(tokens).logits
        merged = model.merge_and_unload()
        moved = (merged(tokens).logits - before).abs().max().item()
    print(json.dumps({"method": name, "losses": losses, "moved": moved}))
