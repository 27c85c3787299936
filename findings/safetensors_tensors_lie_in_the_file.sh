#!/usr/bin/env bash
# safetensors 0.8.0, torch 2.13.0.
# Expected: safe_open(...).get_tensor on a CPU gives tensors of their own memory, aligned to 64 bytes as PyTorch's are.
# Seen: they lie in the mapped file, aligned to 4 bytes only, and so products of equal values may have other last bits than
#   of a copy (on an AVX-512 CPU they do; printed, not checked, as it is the CPU's affair); a file that is deleted stays
#   mapped, its disk space with it, as long as one tensor lives, also after the `with` block. `clone()` cures all three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import gc
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.manual_seed(0)
save_file({"a": torch.randn(1), "b": torch.randn(53, 32)}, "file.safetensors")
with safe_open("file.safetensors", "pt", device="cpu") as file:
    stored = {name: file.get_tensor(name) for name in ("a", "b")}
copies = {name: tensor.clone() for name, tensor in stored.items()}
vector = torch.randn(32)


def is_mapped():
    return any("file.safetensors (deleted)" in line for line in Path("/proc/self/maps").read_text().splitlines())


del file
gc.collect()
Path("file.safetensors").unlink()
seen = {
    "values equal": all(torch.equal(stored[name], copies[name]) for name in stored),
    "copies aligned": all(tensor.data_ptr() % 64 == 0 for tensor in copies.values()),
    "stored ones not": any(tensor.data_ptr() % 8 == 4 for tensor in stored.values()),
    "deleted file mapped": is_mapped(),
}
products = [(group["b"] @ vector) for group in (stored, copies)]
capability = torch.backends.cpu.get_cpu_capability()
print(f"on {capability}, {int((products[0] != products[1]).sum())} of 53 elements of b @ vector differ from the copy's")
stored.clear()
products.clear()
gc.collect()
seen["not without its tensors"] = not is_mapped()
print(seen)
sys.exit(0 if all(seen.values()) else "behaviour changed")
PY
echo "seen as described"
