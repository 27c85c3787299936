"""One file of tensors in the safetensors format, written from where the tensors lie.

Every byte goes from its tensor to the hash and to the file, which needs no memory and keeps Python's lock for no more
than moments.
"""

from pathlib import Path

from torch import Tensor

from model.tensor_format import TYPES, bytes_of, header
from pretrain.checkpoint.manifest import FileEntry
from pretrain.machine.files import write_synced


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileEntry:
    """Write contiguous CPU tensors by name, synced; returns the file's manifest entry."""
    order = list(TYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    fields = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in names}
    parts: list[bytes | memoryview] = [header(fields), *(bytes_of(tensors[name]) for name in names)]
    return FileEntry(path.name, sum(len(part) for part in parts), write_synced(path, *parts))
