#!/usr/bin/env bash
# torch 2.13.0 (its oneDNN), on x86-64.
# Expected: torch._int_mm(a, b) of int8 on a CPU does not depend on strides; a contiguous tensor is the plainest case.
# Seen: of a single row that was a column, t.t().contiguous() of t (K, 1), nothing is computed. Its stride is (1, 1), which
# PyTorch calls contiguous, so contiguous() copies nothing; the call returns, raises nothing, and what `out` held before
# is still there (without `out`, whatever was in memory). So too where b is such a row, (1, N). The same numbers with the
# stride of a row's length, from reshape(-1).view(1, K), give the product. It meets whoever quantises a transposed matrix
# that has one row left, the last token of a batch for example.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys

import torch


def multiplied(a, b):
    """What `out`, all -1 at first, holds after a b."""
    out = torch.full((a.shape[0], b.shape[1]), -1, dtype=torch.int32)
    torch._int_mm(a, b, out=out)
    return out


column = torch.arange(1, 65, dtype=torch.int8).view(64, 1)
was_column, row = column.t().contiguous(), column.reshape(-1).view(1, 64)
factor = torch.ones(64, 16, dtype=torch.int8)
seen = {
    "both are contiguous and equal": was_column.is_contiguous() and row.is_contiguous() and was_column.equal(row),
    "strides": (was_column.stride(), row.stride()) == ((1, 1), (64, 1)),
    "a row gives the sums": bool((multiplied(row, factor) == 64 * 65 // 2).all()),
    "a row that was a column leaves out as it was": bool((multiplied(was_column, factor) == -1).all()),
    "so on the right": bool((multiplied(torch.ones(4, 1, dtype=torch.int8), was_column) == -1).all()),
    "a product in fp32 does not": bool((was_column.float() @ factor.float() == 64 * 65 // 2).all()),
}
print(seen)
sys.exit(0 if all(seen.values()) else "behaviour changed")
PY
echo "seen as described"
