"""One file of tensors in the safetensors format, written from where the tensors lie.

The format (https://github.com/huggingface/safetensors): the header's length in 8 bytes, the header in JSON (by name the
type, the shape, and from where to where the data lie behind the header), then the data without a gap. The library's
`save` makes the file in memory first, twice; here every byte goes from its tensor to the hash and to the file, which
needs no memory and keeps Python's lock for no more than moments.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.manifest import FileEntry
from pretrain.machine.files import write_synced

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


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileEntry:
    """Write contiguous CPU tensors by name, synced; returns the file's manifest entry."""
    order = list(TYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    fields, end = {}, 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        fields[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    parts: list[bytes | memoryview] = [len(header).to_bytes(8, "little") + header]
    parts += [_bytes_of(tensors[name]) for name in names]
    return FileEntry(path.name, sum(len(part) for part in parts), write_synced(path, *parts))


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's own memory."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
