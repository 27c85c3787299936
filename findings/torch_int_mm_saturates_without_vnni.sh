#!/usr/bin/env bash
# torch 2.13.0 (its oneDNN), on x86-64.
# Expected: torch._int_mm of two int8 matrices on a CPU is their integer product, as on a GPU: a sum of K products is at
# most 127^2 K, which int32 holds for any K below 133,000.
# Seen: on a processor without VNNI instructions (AVX2 alone, and AVX-512 up to Skylake) pairs of products are added in
# 16 bits, which saturate: sums are wrong at every shape, of large K nearly all of them, without a word. 8 products of 127 x 127 come to
# 1,020 in place of 129,032. oneDNN documents its inputs as 7 bits wide there; torch passes 8. On a processor with VNNI
# the same happens under ONEDNN_MAX_CPU_ISA=AVX2, which is how this script sees it on any.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > product.py <<'PY'
import torch

wrong = 0
for rows, depth, cols in ((33, 64, 17), (64, 300, 96), (256, 512, 256)):
    random = torch.Generator().manual_seed(depth)
    a, b = (torch.randint(-127, 128, size, generator=random, dtype=torch.int8) for size in ((rows, depth), (depth, cols)))
    found, exact = torch._int_mm(a, b), (a.double() @ b.double()).int()
    wrong += int((found != exact).any())
print(wrong)
PY
avx2=$(ONEDNN_MAX_CPU_ISA=AVX2 "$folder/venv/bin/python" product.py)
skylake=$(ONEDNN_MAX_CPU_ISA=AVX512_CORE "$folder/venv/bin/python" product.py)
echo "shapes of 3 with wrong sums: AVX2 $avx2, AVX-512 without VNNI $skylake"
if grep -q -e avx512_vnni -e avx_vnni /proc/cpuinfo; then
  vnni=$("$folder/venv/bin/python" product.py)
  echo "with VNNI $vnni"
  [[ $vnni == 0 ]]
fi
[[ $avx2 == 3 && $skylake == 3 ]]
echo "seen as described"
