"""Memory: the allocator setting that makes CPU training fast, and the peak that was reached."""

import ctypes
import resource

import torch

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


def peak_bytes(device: torch.device) -> int:
    """Peak of the live tensors on a GPU; on a CPU the peak resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
