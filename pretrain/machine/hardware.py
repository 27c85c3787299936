"""What the device is and can do."""

import os
from pathlib import Path

import torch

from pretrain.machine.gpus import of_device
from pretrain.machine.memory import gpu_cap


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of `device` in bf16, or None: an unknown device has no MFU rather than a guessed one."""
    if device.type != "cuda":
        return None
    gpu = of_device(torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory)
    return gpu.tflops * 1e12 if gpu else None


def free_bytes(device: torch.device) -> int:
    """Memory that `device` could still give to this process; of a CPU's, which all of a machine share, its part."""
    if device.type == "cuda":
        # PyTorch does not give memory back: what it has reserved and does not use is free to this process alone.
        reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + reserved - allocated
        cap = gpu_cap()
        return free if cap is None else max(0, min(free, cap - allocated))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = 4 * 1024**3  # not Linux: enough for a small model's weights
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 products are native: GPUs from compute capability 8.0, CPUs with AVX512-BF16, AMX or Arm bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
