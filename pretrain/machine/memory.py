"""Memory: the settings of both allocators, the CPU's and CUDA's, how much a GPU has, and the peak that was reached."""

import contextlib
import ctypes
import os
import resource
from pathlib import Path

import torch

from model.errors import UserError

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The second is the older name; some parts of PyTorch 2.11 to 2.15 read it first."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4

CAP = "SPARLOW_GPU_MEMORY_CAP"
"""An environment variable: GiB of a GPU that a run may use, as if the card had no more. For trials on a larger card."""


def readable(size: int, binary: bool = False) -> str:
    """Write bytes as people read them: in GB from 1 GB on, below that in MB; `binary`, in GiB and MiB."""
    giga, mega, unit = (2**30, 2**20, "iB") if binary else (10**9, 10**6, "B")
    figure, prefix = (size / giga, "G") if size >= giga else (size / mega, "M")
    return f"{figure:.1f}".removesuffix(".0") + f" {prefix}{unit}"


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step instead of returning them to the kernel.

    Training frees and takes the same large blocks at every step; the page faults of taking them anew cost a third or
    more of a small model's step on a CPU. Call before the first tensor. Elsewhere than on glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 << 20)


def expand_segments() -> None:
    """Let CUDA's allocator grow its segments. Call before the first tensor on a GPU; on a CPU this does nothing.

    PyTorch reads its environment variable then. It has two names, and either may hold settings of the user's; one of
    expandable_segments stays as it is.
    """
    names = [name for name in ALLOCATOR_VARIABLES if os.environ.get(name)]
    if any("expandable_segments" in os.environ[name] for name in names):
        return
    for name in names or ALLOCATOR_VARIABLES[:1]:
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "expandable_segments:True"]))


def gpu_cap() -> int | None:
    """Bytes that SPARLOW_GPU_MEMORY_CAP allows; None where it is not set."""
    text = os.environ.get(CAP, "")
    if not text:
        return None
    cap = 0
    with contextlib.suppress(ValueError, OverflowError):
        cap = int(float(text) * 2**30)
    if cap <= 0:
        raise UserError(f"{CAP}={text} is no size; set it to a number of GiB, e.g. {CAP}=24, or unset it")
    return cap


def gpu_bytes(device: torch.device) -> int:
    """Memory of a GPU, or the cap where that is less."""
    has = torch.cuda.get_device_properties(device).total_memory
    return min(has, gpu_cap() or has)


CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux tells a container how much memory it may take, in both versions of control groups."""


def machine_bytes() -> int:
    """Memory of this machine, whoever uses it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def host_bytes() -> int:
    """Memory of this machine, or of this container where that is less."""
    limits = [machine_bytes()]
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def hold_to_cap(device: torch.device) -> None:
    """Let PyTorch take no more of a GPU than the cap: past it a run fails as on a card of that size.

    What the driver and libraries take for themselves is not PyTorch's and stays outside of it.
    """
    cap = gpu_cap()  # read on a CPU too: a wrong value is a mistake everywhere
    if device.type != "cuda" or cap is None:
        return
    has = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / has), device)


def peak_bytes(device: torch.device) -> int | None:
    """Peak of the live tensors on a GPU, which is what a plan plans. None on a CPU, where nobody counts them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def peak_resident_bytes() -> int:
    """Peak size of this process in the host's memory: Python, its libraries, and on a CPU the tensors."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_figures(device: torch.device) -> dict[str, float]:
    """Both peaks in GiB by TensorBoard tag, that of tensors where it is known."""
    tensors = peak_bytes(device)
    figures = {} if tensors is None else {"mem/peak_gib": tensors / 2**30}
    return figures | {"mem/peak_resident_gib": peak_resident_bytes() / 2**30}


def peak_reserved_bytes(device: torch.device) -> int | None:
    """Peak of what PyTorch took from a GPU: the live tensors and the gaps between them. None on a CPU."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
