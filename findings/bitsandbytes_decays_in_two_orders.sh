#!/usr/bin/env bash
# bitsandbytes 0.50.2, torch 2.13.0.
# Expected: weight decay of bitsandbytes' AdamW as of torch.optim.AdamW, (1 - lr decay) W - lr N, on every device; and
# of its Adam as of torch.optim.Adam, whose gradient it joins.
# Seen: on a CPU AdamW is torch's, with 8-bit and 32-bit moments; but the CUDA kernels of the same wheel add the update
# first and scale the sum, (1 - lr decay) (W - lr N). And Adam decays as AdamW. No GPU is needed: the kernels are read.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install -q --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6 packaging==26.2
"${pip[@]}" --no-deps bitsandbytes==0.50.2
"${pip[@]}" --no-deps --target "$folder/tools" triton==3.9.0 # for its cuobjdump
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import re
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import torch

LR, DECAY = 0.5, 0.1
BEFORE, AFTER, NONE = (1 - LR * DECAY) - LR, (1 - LR * DECAY) * (1 - LR), 1 - LR


def stepped(module, name, elements):
    """A weight of 1 after a step by a gradient of 1, whose Adam update is lr."""
    weight = torch.nn.Parameter(torch.ones(elements))
    optimizer = getattr(module, name)([weight], lr=LR, weight_decay=DECAY)
    weight.grad = torch.ones(elements)
    optimizer.step()
    return weight.mean().item()


def scales_the_sum(kernel):
    """Whether each `weight += factor * direction` of the kernel is followed by a `weight *= factor`, where decay > 0."""
    library = Path(bitsandbytes.__file__).parent / "libbitsandbytes_cuda130.so"
    tool = Path("tools/triton/backends/nvidia/bin/cuobjdump")
    text = subprocess.run([tool, "-sass", "-arch", "sm_80", "-fun", kernel, library], capture_output=True, text=True)
    code = "\n".join(re.findall(r"/\*[0-9a-f]{4}\*/\s+(.*?) ;", text.stdout))
    return bool(re.search(r"FFMA\.FTZ (R\d+), R\d+, R\d+, \1\n@P\d FMUL\.FTZ \1, R\d+, \1\n", code))


def is_near(found, right):
    return abs(found - right) < 1e-6


optim = bitsandbytes.optim
seen = {
    "torch AdamW decays before": is_near(stepped(torch.optim, "AdamW", 8), BEFORE),
    "torch Adam's gradient takes it": is_near(stepped(torch.optim, "Adam", 8), NONE),
    "AdamW on a CPU before": all(is_near(stepped(optim, "AdamW8bit", n), BEFORE) for n in (4095, 4096)),
    "Adam on a CPU before": all(is_near(stepped(optim, "Adam8bit", n), BEFORE) for n in (4095, 4096)),
    "32 bits on CUDA after": scales_the_sum("_Z21kOptimizer32bit2StateIfLi0EEvPT_S1_PfS2_S2_ffffffffiffbi"),
    "8 bits on CUDA after": scales_the_sum(
        "_Z35kOptimizerStatic8bit2StateBlockwiseIfLi0ELi256ELi1EEvPT_S1_PhS2_fffffifPfS3_S3_S3_ffbi"
    ),
}
print("before", BEFORE, "after", AFTER, seen)
sys.exit(0 if all(seen.values()) else "behaviour changed")
PY
echo "seen as described"
