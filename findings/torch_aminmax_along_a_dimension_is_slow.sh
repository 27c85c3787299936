#!/usr/bin/env bash
# torch 2.13.0, on a CPU, one thread.
# Expected: x.aminmax(dim=1), smallest and largest of each row in one pass, takes no longer than amin and amax one after
# the other: its reason to be. It is what one reaches for to quantise by row.
# Seen: on (2048, 768) it takes 4 to 20 times as long as the two, in fp32 and in bf16. Over the whole tensor it is as fast as
# the two or faster. torch.linalg.vector_norm with ord=inf, the other way to a row's largest magnitude, is as slow.
# x.abs().amax(1) is what is fast and remains exact, NaN included.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
import time

import torch

torch.set_num_threads(1)


def ratio(one, other):
    """Shortest time of `one` to that of `other`, in turns."""
    least = [float("inf"), float("inf")]
    for _ in range(40):
        for i, work in enumerate((one, other)):
            start = time.perf_counter()
            work()
            least[i] = min(least[i], time.perf_counter() - start)
    return least[0] / least[1]


seen = {}
for dtype in (torch.float32, torch.bfloat16):
    x = torch.randn(2048, 768, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = ratio(lambda: x.aminmax(dim=1), lambda: (x.amin(1), x.amax(1)))
    whole = ratio(lambda: x.aminmax(), lambda: (x.amin(), x.amax()))
    norm = ratio(lambda: torch.linalg.vector_norm(x, float("inf"), dim=1), lambda: x.abs().amax(1))
    print(f"{dtype}: by row {rows:.1f}, whole {whole:.1f}, vector_norm to abs and amax {norm:.1f}")
    seen[f"{dtype}: slow by row"] = rows > 2
    seen[f"{dtype}: not over the whole"] = whole < 1.5
    seen[f"{dtype}: so is the norm"] = norm > 2
    seen[f"{dtype}: equal numbers"] = torch.equal(x.abs().amax(1), torch.linalg.vector_norm(x, float("inf"), dim=1))
sys.exit(0 if all(seen.values()) else f"behaviour changed: {seen}")
PY
echo "seen as described"
