"""Copies of a checkpoint's tensors in host memory, which training does not touch: what the thread that writes reads.

Beside a GPU the memory is page-locked, and copies are queued on the computation's own stream: behind the step that has
made the tensors, before whatever overwrites them or takes their memory next, and the host waits for none of them. So no
tensor needs to be kept, and no later step to be held back. An event behind the last copy tells the thread when all are
there. Another stream could hide the copies behind the next step's forward pass, at the price of holding back all that
writes to a tensor, updates within the backward pass too: some tenths of a second in a thousand steps are not worth it.

What is subtle: a buffer is written again at the next save. That waits until the thread is done with this one.
"""

import contextlib
import mmap
import weakref
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes: a cache line, and a multiple of every type's width."""


class Queue(Protocol):
    """Copies that are made one after the other, behind all that a device has been asked to do before."""

    def register(self, memory: Tensor) -> Callable[[], None]:
        """Prepare host memory for copies; return what undoes that."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy."""

    def mark(self) -> Callable[[], None]:
        """Return what waits, in whatever thread, for all copies so far."""


class CudaQueue:
    """The stream of a GPU that computes."""

    def __init__(self, device: torch.device):
        self.device = device

    def register(self, memory: Tensor) -> Callable[[], None]:
        """Page-lock memory as it is: PyTorch's own page-locked memory comes in powers of two. OSError if it cannot be.

        The driver wants whole pages at one place, as `mmap` gives them.
        """
        address, runtime = memory.data_ptr(), torch.cuda.cudart()
        failed = int(runtime.cudaHostRegister(address, memory.nbytes, 0))
        if failed:
            raise OSError(f"CUDA cannot page-lock {memory.nbytes / 2**30:.1f} GiB of host memory (error {failed})")
        return lambda: runtime.cudaHostUnregister(address)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event(blocking=True)  # whoever waits sleeps
        event.record(torch.cuda.current_stream(self.device))
        return event.synchronize


class HostQueue:
    """A CPU: a copy is made when it is asked for."""

    def register(self, memory: Tensor) -> Callable[[], None]:
        return lambda: None

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def mark(self) -> Callable[[], None]:
        return lambda: None


class HostCopies:
    """One rank's copies, by number of file and name, in memory that is taken once and used again for every save."""

    def __init__(self, device: torch.device, queue: Queue | None = None):
        self.queue: Queue = queue or (CudaQueue(device) if device.type == "cuda" else HostQueue())
        self.files: dict[int, dict[str, Tensor]] = {}
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._release: Callable[[], object] = lambda: None
        self._filled = 0

    def reserve(self, size: int) -> None:
        """Have room for `size` bytes (`room_for` each tensor). OSError where there is no such memory."""
        if size > self._memory.nbytes:
            self.close()
            self._map(size)
        self.files, self._filled = {}, 0

    def _map(self, size: int) -> None:
        pages = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # the first save would spend half of its wait on small pages
            with contextlib.suppress(OSError):  # a kernel without them
                pages.madvise(mmap.MADV_HUGEPAGE)
        memory = torch.frombuffer(pages, dtype=torch.uint8)
        self._release = weakref.finalize(self, self.queue.register(memory))
        self._memory = memory

    @property
    def size(self) -> int:
        """Bytes of the memory that is taken."""
        return self._memory.nbytes

    def take(self, index: int, name: str, tensor: Tensor) -> None:
        """Queue the copy of a tensor of file `index`."""
        end = self._filled + tensor.nbytes
        target = self._memory[self._filled : end].view(tensor.dtype).view(tensor.shape)
        self.queue.copy(target, tensor.detach())
        self._filled += room_for(tensor.nbytes)
        self.files.setdefault(index, {})[name] = target

    def close(self) -> None:
        """Give the memory back, after copies that are on their way although nobody writes them."""
        if self.files:
            with contextlib.suppress(RuntimeError):  # a GPU that has failed has none
                self.queue.mark()()
        self._release()
        self.files, self._memory = {}, torch.empty(0, dtype=torch.uint8)
        self._release = lambda: None


def room_for(size: int) -> int:
    """Bytes that a tensor of `size` takes among the copies."""
    return -(-size // ALIGNMENT) * ALIGNMENT
