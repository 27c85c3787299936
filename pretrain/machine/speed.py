"""What `sparlow doctor` says of speed and room: a line each, and the fix where something costs a run some of either."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pretrain.machine.gpus import of_device
from pretrain.machine.hardware import free_bytes, has_bf16
from pretrain.machine.memory import ALLOCATOR_VARIABLES, host_bytes, machine_bytes, readable
from pretrain.machine.threads import SPINS, VARIABLES, describe

DISK_BYTES, SLOW_DISK = 64 * 10**6, 100e6
"""Bytes written to measure a disk, and bytes per second below which a checkpoint of a large model takes minutes."""
LITTLE_DISK, LITTLE_MEMORY = 5 * 10**9, 2 * 10**9
"""Free bytes below which even small runs may end for want of room."""
COPIED_BYTES, COPIES = 2**28, 3
"""Size and number of the copies that measure a GPU's connection; the fastest counts."""
FAIR_SHARE = 0.6
"""Part of a connection's peak that copies reach on a sound machine, at least."""


class Slow(Exception):
    """Something that a run does without, and the fix."""

    def __init__(self, detail: str, fix: str):
        super().__init__(detail)
        self.fix = fix


def checks() -> dict[str, Callable[[], str]]:
    """The checks that make sense on this machine, by what they look at; each returns a line or raises Slow."""
    everywhere: dict[str, Callable[[], str]] = {"threads": threads, "host memory": host_memory, "disk": disk}
    if not torch.cuda.is_available():
        return everywhere
    on_a_gpu: dict[str, Callable[[], str]] = {"bf16": bf16, "attention": attention, "liger-kernel": liger_kernel}
    return everywhere | on_a_gpu | {"allocator": allocator, "pinned memory": connection}


def threads() -> str:
    """Threads of a process against the cores it may use, and how they wait for each other."""
    count, cores, set_to = torch.get_num_threads(), len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS")
    detail = f"{count} in a process, on {cores} cores; how they wait for each other: {describe()}"
    if count > cores:
        raise Slow(detail, f"unset OMP_NUM_THREADS, or set it to {cores} divided by the processes of a run")
    if count < cores and set_to:
        raise Slow(detail, f"a single process leaves cores idle: unset OMP_NUM_THREADS, which is {set_to}")
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active" or int(os.environ.get(VARIABLES[0]) or 0) > int(SPINS):
        raise Slow(detail, f"one more busy process costs most of a run's speed: unset {' and '.join(VARIABLES)}")
    return detail


def host_memory() -> str:
    limit, free = host_bytes(), free_bytes(torch.device("cpu"))
    where = ", the limit of this container" if limit < machine_bytes() else ""
    detail = f"{readable(min(free, limit))} of {readable(limit)} free{where}"
    if min(free, limit) < LITTLE_MEMORY:
        raise Slow(detail, "end other programs, or raise the container's limit (docker run --memory, SLURM's --mem)")
    return detail


def disk(folder: Path | None = None) -> str:
    """Room, and the rate of writing to a disk and waiting for it, where runs go by default."""
    folder = folder or (Path("runs") if Path("runs").is_dir() else Path.cwd())
    free = shutil.disk_usage(folder).free
    detail, fix = f"{readable(free)} free in {folder}", "free some space, or set run.dir to a folder on a larger disk"
    if free < LITTLE_DISK:
        raise Slow(detail, fix)
    try:
        rate = write_rate(folder)
    except OSError as error:
        raise Slow(
            f"nothing can be written in {folder} ({error.strerror})", "set run.dir to a folder of yours"
        ) from None
    detail += f", written at {readable(int(rate))}/s"
    if rate < SLOW_DISK:
        raise Slow(detail, "set run.dir to a folder on a faster disk; a checkpoint of a 7B has 10 to 40 GB")
    return detail


def write_rate(folder: Path) -> float:
    """Bytes per second, of bytes that no disk can compress."""
    data = os.urandom(DISK_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return DISK_BYTES / (time.perf_counter() - started)


def bf16() -> str:
    major, minor = torch.cuda.get_device_capability()
    detail = f"compute capability {major}.{minor}"
    if not has_bf16(torch.device("cuda")):
        fix = 'train in fp32, with optimizer.weights = "fp32_master", or take a GPU from the RTX 30 series or A100 on'
        raise Slow(f"{detail} has no bf16", fix)
    return f"{detail}, native"


def attention() -> str:
    if not torch.backends.cuda.is_flash_attention_available():
        raise Slow("this torch has no flash attention", "install torch's own build for CUDA: pip install torch")
    if not has_bf16(torch.device("cuda")):
        raise Slow("flash attention needs compute capability 8.0", "take a GPU from the RTX 30 series or A100 on")
    return "flash kernels, in bf16"


def liger_kernel() -> str:
    try:
        return version("liger-kernel")
    except PackageNotFoundError:
        detail = "not installed; SwiGLU and rotary embeddings take several kernels each without it"
        raise Slow(detail, "pip install liger-kernel -c constraints.txt") from None


def allocator() -> str:
    for name in ALLOCATOR_VARIABLES:
        if os.environ.get(name):
            return f"{name}={os.environ[name]}"
    return "the default; train.expandable_segments = true loses less memory to fragmentation"


def connection() -> str:
    """Pinning of host memory, and the rate of copies between it and the GPU against the card's own connector."""
    try:
        up, down = copy_rates()
    except RuntimeError as error:
        fix = "raise the limit of locked memory (ulimit -l unlimited, docker run --ulimit memlock=-1)"
        raise Slow(f"no host memory can be pinned ({str(error).splitlines()[0]})", fix) from None
    gpu = of_device(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory)
    detail = f"{up / 1e9:.1f} GB/s to the GPU, {down / 1e9:.1f} back"
    if gpu is None:
        return detail
    (generation, lanes), peak = gpu.pcie, pcie_peak(*gpu.pcie)
    detail += f", of {peak / 1e9:.1f} that PCIe {generation}.0 x{lanes} has"
    if min(up, down) < FAIR_SHARE * peak:
        raise Slow(detail, "offloading waits for it: see nvidia-smi -q -d PCIE; another slot may have more lanes")
    return detail


def pcie_peak(generation: int, lanes: int) -> float:
    """Bytes per second and direction: 8 GT/s in generation 3, twice that in each later one, 128 of 130 bits data."""
    return lanes * 1e9 * 2 ** (generation - 3) * 128 / 130


def copy_rates() -> tuple[float, float]:
    """Bytes per second of copies from pinned host memory to the GPU, and back."""
    host = torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    rates = []
    for target, source in ((device, host), (host, device)):
        seconds = []
        for _ in range(COPIES):
            torch.cuda.synchronize()
            started = time.perf_counter()
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        rates.append(COPIED_BYTES / min(seconds))
    return rates[0], rates[1]
