"""The choice of what an operation runs: a Triton kernel or plain PyTorch.

`auto` takes the kernels for tensors on a GPU and PyTorch elsewhere; `triton` insists on the kernels, `torch` on
PyTorch. The environment variable SPARLOW_KERNELS overrides what `configure` was told. On a CPU, kernels run only in
Triton's interpreter (TRITON_INTERPRET=1, set before anything imports triton), which is for tests: it is slow.
"""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

Op = TypeVar("Op", bound=Callable[..., Any])
Backend = Literal["auto", "triton", "torch"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Triton 3.10 turns the fusion of multiply and add off by default: the same results under every version.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

_configured: Backend = "auto"


def configure(backend: Backend) -> None:
    """Choose for this process; SPARLOW_KERNELS still wins."""
    global _configured
    _configured = backend


@contextlib.contextmanager
def configured(backend: Backend) -> Iterator[None]:
    """Inside, the choice is `backend`, as `configure` makes it."""
    before = _configured
    configure(backend)
    try:
        yield
    finally:
        configure(before)


def backend() -> Backend:
    """The choice in force; ValueError when SPARLOW_KERNELS is none of the three."""
    choice = os.environ.get("SPARLOW_KERNELS", _configured)
    if choice not in get_args(Backend):
        raise ValueError(f"SPARLOW_KERNELS is {choice!r}; set it to auto, triton or torch")
    return choice  # type: ignore[return-value]


def uses_triton(tensor: Tensor) -> bool:
    """Tell whether an operation on `tensor` runs as a Triton kernel; RuntimeError when it must but cannot."""
    choice = backend()
    if choice == "torch":
        return False
    runnable = (tensor.is_cuda or INTERPRETED) and importlib.util.find_spec("triton") is not None
    if choice == "triton" and not runnable:
        raise RuntimeError(
            f"kernels.backend is triton, but Triton kernels cannot run on a tensor on {tensor.device}; "
            "use a GPU or set kernels.backend (SPARLOW_KERNELS) to auto"
        )
    return tensor.is_cuda and runnable if choice == "auto" else runnable


def on_its_device(op: Op) -> Op:
    """Decorate: `op` runs with the GPU of its first argument as the current one, on which Triton launches."""

    @functools.wraps(op)
    def run(*arguments: Any, **options: Any) -> Any:
        device = (arguments[0] if arguments else next(iter(options.values()))).device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return op(*arguments, **options)
        with torch.cuda.device(device):
            return op(*arguments, **options)

    return cast(Op, run)
