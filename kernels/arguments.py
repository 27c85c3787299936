"""What an operation does with its arguments before a kernel reads them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

LARGEST_OFFSET = 2**31
"""Kernels address the elements of a matrix with 32 bits."""

WEIGHT_DTYPES = (torch.float32, torch.bfloat16)
"""Types of a weight that is updated, and of what it is updated by."""


def check_matrix(name: str, matrix: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> None:
    """ValueError unless `matrix` has `shape`, one of `dtypes`, and rows whose elements are adjacent in memory."""
    if tuple(matrix.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}; it must be {tuple(shape)}")
    if matrix.dtype not in dtypes:
        raise ValueError(f"{name} is {matrix.dtype}; it must be {' or '.join(map(str, dtypes))}")
    if matrix.shape[1] > 1 and matrix.stride(1) != 1:
        raise ValueError(f"{name}'s rows must be contiguous: its strides are {matrix.stride()}")
    if matrix.shape[0] * max(matrix.stride(0), matrix.shape[1]) >= LARGEST_OFFSET:
        raise ValueError(f"{name} of shape {tuple(matrix.shape)} spans 2^31 elements or more")


def check_same(tensors: Mapping[str, Tensor], what: str) -> None:
    """ValueError unless all have one `what`: "device" or "dtype"."""
    found = {name: getattr(tensor, what) for name, tensor in tensors.items()}
    if len(set(found.values())) > 1:
        raise ValueError(f"{', '.join(found)} must have one {what}, not {', '.join(map(str, found.values()))}")


def hyper(*values: float | Tensor, device: torch.device) -> Tensor:
    """`values`, each a float or a 0-d tensor that may change from step to step, as one fp32 tensor on `device`.

    Kernels read them there. The host does not wait for the device (a copy from its memory would make it), so this may
    be captured in a CUDA graph.
    """
    filled = torch.empty(len(values), dtype=torch.float32, device=device)
    for slot, value in zip(filled, values, strict=True):
        slot.fill_(value)
    return filled
