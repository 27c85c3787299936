"""Which of several implementations of an operation is fastest here: measured where it was measured, else by rule.

`sparlow bench kernels --store` also times the alternatives and keeps them in the device's file as rows {"op", "dtype",
"sizes", "ms": {implementation: milliseconds}}. Without such a file the rule of each operation decides, so that two runs
of one configuration on one machine choose alike.
"""

import functools
import math
from typing import Any

import torch

from kernels.bench import store


def fastest(op: str, device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...], default: str) -> str:
    """The implementation of `op` that was fastest at the measured sizes nearest to `sizes`, else `default`.

    Near is by ratio: the sum of squared logarithms. A size of 0 counts as 1.
    """
    rows = [row for row in _alternatives(device) if row["op"] == op and row["dtype"] == str(dtype)[6:]]
    if not rows:
        return default

    def distance(row: dict[str, Any]) -> float:
        return sum(math.log(max(there, 1) / max(here, 1)) ** 2 for there, here in zip(row["sizes"], sizes, strict=True))

    times = min(rows, key=distance)["ms"]
    return min(times, key=times.__getitem__)


@functools.cache
def _alternatives(device: torch.device) -> list[dict[str, Any]]:
    stored = store.load(device)
    return stored.get("alternatives", []) if stored else []
