#!/usr/bin/env bash
# torch 2.13.0.
# Expected: 448 / x, of a number and an fp32 tensor, is the quotient rounded once, as of two tensors.
# Seen: Tensor's division of a number takes the reciprocal times the number, each rounded: a quarter of the quotients
# are a last bit away from torch.full_like(x, 448) / x, which is right throughout. In fp64 too. It shows where a scale
# such as largest / absmax is computed so in PyTorch and by a correctly rounded division in a kernel: codes of 8 bits
# that lie next to a tie then differ.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys

import torch

x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 10 + 0.1
exact = (448 / x.double()).float()  # fp64 has bits enough to spare, whichever way it divides
number, tensors = 448 / x, torch.full_like(x, 448) / x
seen = {
    "of two tensors it is right": bool((tensors == exact).all()),
    "of a number it is the reciprocal's multiple": bool((number == x.reciprocal() * 448).all()),
    "a quarter of those are not right": 0.2 < (number != exact).double().mean().item() < 0.35,
    "torch.div of two tensors is right too": bool((torch.div(torch.tensor(448.0), x) == exact).all()),
    "in fp64 too": bool((448 / x.double() != torch.full_like(x.double(), 448) / x.double()).any()),
}
print(seen)
sys.exit(0 if all(seen.values()) else "behaviour changed")
PY
echo "seen as described"
