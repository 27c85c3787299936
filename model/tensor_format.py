"""The safetensors format, as writing a file tensor by tensor needs it.

The format (https://github.com/huggingface/safetensors): the header's length in 8 bytes, the header in JSON (by name the
type, the shape, and from where to where the data lie behind the header), then the data without a gap. The library's
`save` makes the file in memory first, twice; whoever writes the header here, then every tensor's bytes, needs no memory
but one tensor's.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

TYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names, in the order in which the library puts tensors into a file: wide ones first, so that each begins
at a multiple of its width."""

ALIGNMENT = 8


def header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str] | None = None) -> bytes:
    """What stands before the data of `tensors` (dtype and shape by name), which follow in that order."""
    fields: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        fields[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's own memory."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
