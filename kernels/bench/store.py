"""Measurements of one device, in a file beside this module: what the choice between implementations may rest on.

Files of GPUs are part of the repository; those of processors stay on the machine that wrote them.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from kernels.bench.environment import environment
from kernels.hardware import device_name

FOLDER = Path(__file__).parent / "devices"


def device_slug(device: torch.device) -> str:
    """The device as a file name: "nvidia-h100-80gb-hbm3", "cpu-amd-epyc-9554-64-cores"."""
    name = device_name(device) if device.type == "cuda" else f"cpu {device_name(device)} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def path_for(device: torch.device) -> Path:
    """Where the measurements of `device` are kept."""
    return FOLDER / f"{device_slug(device)}.json"


def load(device: torch.device) -> dict[str, Any] | None:
    """`hardware`, `versions`, `commit`, `date`, `rows` and `alternatives`; None when `device` was never measured.

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


def save(device: torch.device, rows: list[dict[str, Any]], alternatives: list[dict[str, Any]]) -> Path:
    """Replace the measurements of `device`."""
    path = path_for(device)
    path.parent.mkdir(exist_ok=True)
    stored = environment(device) | {"rows": rows, "alternatives": alternatives}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path
