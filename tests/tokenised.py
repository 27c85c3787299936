"""Files of ids as other programs write them, by the rules of their formats."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Documents = Sequence[Sequence[int]]


def write_flat(path: Path, documents: Documents, dtype: str = "<u2") -> Path:
    """nanoGPT's data/*/prepare.py: ids end to end."""
    np.concatenate([np.array(document, dtype=dtype) for document in documents]).tofile(path)
    return path


def write_llm_c(path: Path, documents: Documents, magic: int = 20240520, version: int = 1) -> Path:
    """llm.c's dev/data/data_common.py write_datafile."""
    ids = [i for document in documents for i in document]
    header = struct.pack("<3i", magic, version, len(ids)) + bytes(253 * 4)
    path.write_bytes(header + struct.pack(f"<{len(ids)}{'H' if version == 1 else 'I'}", *ids))
    return path


def write_megatron(prefix: Path, documents: Sequence[Documents], code: int = 8, modes: bool = False) -> Path:
    """megatron/core/datasets/indexed_dataset.py IndexedDatasetBuilder: documents of sequences of ids."""
    letter = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}[code]
    sequences = [sequence for document in documents for sequence in document]
    data = [struct.pack(f"<{len(sequence)}{letter}", *sequence) for sequence in sequences]
    pointers, indices = [0], [0]
    for packed in data:
        pointers.append(pointers[-1] + len(packed))
    for document in documents:
        indices.append(indices[-1] + len(document))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, code) + struct.pack("<QQ", len(sequences), len(indices))
    index += struct.pack(f"<{len(sequences)}i", *map(len, sequences))
    index += struct.pack(f"<{len(sequences)}q", *pointers[:-1])
    index += struct.pack(f"<{len(indices)}q", *indices)
    index += bytes(len(sequences)) if modes else b""
    prefix.with_name(f"{prefix.name}.bin").write_bytes(b"".join(data))
    prefix.with_name(f"{prefix.name}.idx").write_bytes(index)
    return prefix
