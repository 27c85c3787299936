"""What a measurement must carry to mean anything later: hardware, versions, commit and date."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kernels.measured import device_name

ROOT = Path(__file__).parents[2]


def environment(device: torch.device) -> dict[str, Any]:
    """`hardware`, `versions`, `commit` (ends in "-dirty" when files differ; None outside of git) and `date` (UTC)."""
    return {
        "hardware": _hardware(device),
        "versions": _versions(device),
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _hardware(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"name": device_name(device), "cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["memory_bytes"] = properties.total_memory
        found["multiprocessors"] = properties.multi_processor_count
        found["capability"] = f"{properties.major}.{properties.minor}"
    else:
        found["threads"] = torch.get_num_threads()
    return found


def _versions(device: torch.device) -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        found["triton"] = version("triton")
    except PackageNotFoundError:
        found["triton"] = None
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
        found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    return found


def _output(*command: str) -> str | None:
    """What the command prints; None where it does not exist or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
