"""The fastest of several implementations of an operation on this device: measured where it was, else by rule.

`sparlow bench kernels --store` times the alternatives and keeps them in the device's file in this folder, as rows
{"op", "dtype", "sizes", "ms": {implementation: milliseconds}}. Without such a file the rule of each operation decides,
so that two runs of one configuration on one machine choose alike. Files of GPUs are part of the repository; those of
processors stay on the machine that wrote them.
"""

import functools
import json
import math
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent


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
    stored = load(device)
    return stored["alternatives"] if stored else []


def load(device: torch.device) -> dict[str, Any] | None:
    """Read what `sparlow bench kernels --store` wrote, `alternatives` among it; None when `device` was never measured.

    ValueError when the file is damaged.
    """
    path = path_for(device)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise ValueError(f"{path} is not JSON; delete it or run sparlow bench kernels --store") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("alternatives"), list):
        raise ValueError(f"{path} holds no measurements; delete it or run sparlow bench kernels --store")
    return stored


def path_for(device: torch.device) -> Path:
    """The file that keeps the measurements of `device`."""
    return FOLDER / f"{device_slug(device)}.json"


def device_slug(device: torch.device) -> str:
    """The device as a file name: "nvidia-h100-80gb-hbm3", "cpu-amd-epyc-9554-64-cores"."""
    name = device_name(device) if device.type == "cuda" else f"cpu {device_name(device)} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
