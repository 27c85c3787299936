"""The inputs of recomputed parts of a network wait in host memory.

Under recomputation the forward pass keeps the input of every recomputed part, the residual stream, until the backward
pass comes by: for 32 blocks of width 4096 and 16,384 tokens, 4 GiB in bf16. Nothing reads them meanwhile, so they may
leave the device. That is what lets a card of 16 or 24 GB take many tokens per micro-batch (the idea of LLMQ, arXiv
2512.15306), and since they cost the device nothing there, a block is recomputed in two parts, attention and
feed-forward: the activations of one are gone when those of the other come.

An input goes out while the part that it enters computes, and comes back while the part behind it is recomputed and
differentiated:

    forward    compute  | part 0 .......... | part 1 .......... | part 2, whose input stays
               copy     | 0 to the host     | 1 to the host     |
    backward   compute  | part 2 again, its gradients | part 1 again, its gradients | part 0 ...
               copy     | 1 to the device             | 0 to the device             |

All copies are queued on one stream (a `Lane`), in the order in which they are asked for; the rest follows from two
waits. A copy begins when the computation has done what was queued before it: then an input is there, and memory that is
to take one is not in use. And the computation waits for a copy before it lets go of what goes out, and before it reads
what comes back. So memory of the device is freed and taken on the computation's stream alone, at the same places in
every step: no `Tensor.record_stream` is needed, which would make both depend on how far the host runs ahead. The host
never waits, and never reads the buffers.

What is subtle: a buffer belongs to one input as long as autograd's graph can ask for it, then to the next one of its
shape. As far as the host knows it may be written again while it is still being read; the lane does one after the other.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.errors import UserError

Buffers = defaultdict[tuple[torch.Size, torch.dtype], list[Tensor]]
"""Host memory that is free, by shape and type."""


class Lane(Protocol):
    """Copies between a device and host memory, one after the other, beside the computation."""

    def host(self, like: Tensor) -> Tensor:
        """Host memory for a tensor like that."""

    def copy(self, target: Tensor, source: Tensor) -> Any:
        """Queue a copy behind all that the computation has queued; return what `wait` takes."""

    def wait(self, copied: Any) -> None:
        """Let what the computation queues from now on begin when that copy is done."""


class CudaLane:
    """A stream of a GPU's own for copies from and to pinned memory."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def host(self, like: Tensor) -> Tensor:
        try:
            return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)
        except RuntimeError as error:
            raise UserError(
                f"there is no host memory to pin {like.nbytes / 2**20:.0f} MiB more ({str(error).splitlines()[0]}): "
                "set train.offload_activations = false, or lower train.micro_batch_size"
            ) from None

    def copy(self, target: Tensor, source: Tensor) -> torch.cuda.Event:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        return self.stream.record_event()

    def wait(self, copied: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(copied)


class HostLane:
    """The copies of a CPU, into other memory of its own; each is done when it has been asked for."""

    def host(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device="cpu")

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def wait(self, copied: None) -> None: ...


class Offload:
    """Buffers and lane of one model, there as long as it; `begin` starts a forward pass."""

    def __init__(self, lane: Lane | None = None):
        self.lane = lane
        """Made for the first input's device where it is None."""
        self.free: Buffers = defaultdict(list)

    def begin(self) -> "ForwardPass":
        return ForwardPass(self)

    def lane_of(self, x: Tensor) -> Lane:
        if self.lane is None:
            self.lane = CudaLane(x.device) if x.device.type == "cuda" else HostLane()
        return self.lane


class ForwardPass:
    """The recomputed parts of one forward pass, in order."""

    def __init__(self, offload: Offload):
        self.offload = offload
        self.newest: Kept | None = None

    def recomputed(self, part: Callable[..., Tensor], x: Tensor, *others: Any, stays: bool = False) -> Tensor:
        """part(x, *others), of which the backward pass keeps nothing on x's device but `others`: it computes it again.

        x goes to host memory. With `stays` it does not: the last one is needed at once.
        """
        kept = self.newest = Kept(self.offload, x, self.newest)
        if not stays:
            kept.send()
        y = checkpoint(_compute, part, kept, *others, use_reentrant=False, preserve_rng_state=False)
        kept.end_forward()
        return y


def _compute(part: Callable[..., Tensor], kept: "Kept", *others: Any) -> Tensor:
    """What `checkpoint` calls twice. It sees no tensor in `kept`, so it keeps none."""
    return part(kept.read(), *others)


class Kept:
    """The input of one recomputed part: on the device, in host memory, or on its way."""

    def __init__(self, offload: Offload, x: Tensor, before: "Kept | None"):
        self.buffer: Tensor | None = None
        self.copied: Any = None
        """The last copy, as a tuple of one, where nobody has waited for it."""
        self.forward = True
        """Whether this is still the forward pass, which reads x itself."""
        self.x: Tensor | None = x
        self.shape, self.dtype, self.device, self.requires_grad = x.shape, x.dtype, x.device, x.requires_grad
        self.lane, self.free, self.before = offload.lane_of(x), offload.free, before

    def send(self) -> None:
        """Begin to copy x to host memory."""
        assert self.x is not None
        free = self.free[self.shape, self.dtype]
        self.buffer = free.pop() if free else self.lane.host(self.x)
        self.copied = (self.lane.copy(self.buffer, self.x.detach()),)

    def end_forward(self) -> None:
        """Let go of x where it has been sent."""
        assert self.x is not None
        self.forward = False
        self._arrive()
        self.x = self.x.detach() if self.buffer is None else None

    def fetch(self) -> None:
        """Begin to bring x back, where it is not there or on its way."""
        if self.x is None:
            assert self.buffer is not None
            self.x = torch.empty(self.shape, dtype=self.dtype, device=self.device)
            self.copied = (self.lane.copy(self.x, self.buffer),)

    def read(self) -> Tensor:
        """Return x on the device; after the forward pass one like it, and the input before it begins to come."""
        if self.forward:
            assert self.x is not None
            return self.x
        self.fetch()
        self._arrive()
        if self.before is not None:
            self.before.fetch()
        x = self.x
        assert x is not None
        if self.buffer is not None:  # it can come again
            self.x = None
        return x.detach().requires_grad_(self.requires_grad)

    def _arrive(self) -> None:
        """Let the computation wait for the last copy."""
        if self.copied is not None:
            self.lane.wait(*self.copied)
            self.copied = None

    def __del__(self) -> None:
        """No graph can ask for x any more: the buffer is free. A copy may be on its way to memory that will be."""
        self._arrive()
        if self.buffer is not None:
            self.free[self.shape, self.dtype].append(self.buffer)
