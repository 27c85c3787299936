#!/usr/bin/env bash
# deepspeed 0.19.8, torch 2.13.0.
# Expected: once an engine of ZeRO stage 3 is destroyed, torch.nn.functional.linear is PyTorch's again, as it is before it.
# Seen: it stays DeepSpeed's zero3_linear_wrap for the rest of the process, for models that are not sharded too. A message
#   that is not printed by default says so ("will persist unless manually reset").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 deepspeed==0.19.8
cd "$folder"
export TORCH_EXTENSIONS_DIR="$folder/extensions"
"$folder/venv/bin/python" - <<'PY'
import os
import sys

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}
import deepspeed
import torch
import torch.distributed as dist
from torch.nn import functional

plain = functional.linear
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = torch.nn.Linear(8, 8)
config = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3},
    "bf16": {"enabled": True},
    "zero_allow_untested_optimizer": True,
}
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
during = functional.linear.__name__
engine.destroy()
dist.destroy_process_group()
print("with the engine", during, "after it", functional.linear.__name__)
sys.exit(0 if during == functional.linear.__name__ == "zero3_linear_wrap" != plain.__name__ else "behaviour changed")
PY
echo "seen as described"
