"""Memory: the settings of both allocators, the CPU's and CUDA's, and the peak that was reached."""

import ctypes
import os
import resource

import torch

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The second is the older name; some parts of PyTorch 2.11 to 2.15 read it first."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


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


def peak_bytes(device: torch.device) -> int:
    """Peak of the live tensors on a GPU; on a CPU the peak resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
