#!/usr/bin/env bash
# torch 2.13.0.
# Expected: torch.utils.flop_counter.FlopCounterMode counts C.addmm_(A, B) like torch.addmm(C, A, B).
# Seen: 0 FLOPs for the form in place; addmm and mm(out=) are counted. A step that sums gradients in place seems free.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode


def flops(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


A, B, C = torch.randn(8, 16), torch.randn(16, 4), torch.randn(8, 4)
seen = {
    "addmm": flops(lambda: torch.addmm(C, A, B)),
    "mm(out=)": flops(lambda: torch.mm(A, B, out=torch.empty(8, 4))),
    "addmm_": flops(lambda: C.addmm_(A, B)),
}
print(seen, "of", 2 * 8 * 16 * 4)
sys.exit(0 if seen == {"addmm": 1024, "mm(out=)": 1024, "addmm_": 0} else "behaviour changed")
PY
echo "seen as described"
